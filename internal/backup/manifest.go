package backup

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
)

// Format is the number of the archive's form that this program writes and the highest that it reads.
const Format = 1

// The names of the archive's first and last file, and of the database.
const (
	headerName   = "steward-backup.json"
	manifestName = "manifest.json"
	databaseName = "steward.db"
)

// Bounds of what is read from an archive, which may be anybody's.
const (
	maxHeaderBytes   = 1 << 20
	maxManifestBytes = 1 << 30 // about four million files
)

// Errors that callers branch on.
var (
	// ErrDamaged says that an archive is not what was written: cut off, changed, or another file.
	ErrDamaged = errors.New("the archive is damaged")
	// ErrKey says that the archive is encrypted for somebody else.
	ErrKey = errors.New("the archive does not open with this passphrase or key")
	// ErrNeedsKey says that the archive is encrypted and no key was given.
	ErrNeedsKey = errors.New("the archive is encrypted: a passphrase or a key is needed")
	// ErrNewer says that a newer Steward has written the archive.
	ErrNewer = errors.New("the archive is of a newer Steward")
	// ErrNotEmpty says that the directory to restore into holds something.
	ErrNotEmpty = errors.New("the directory is not empty")
	// ErrNotEmbedded says that a data directory has no database in it.
	ErrNotEmbedded = errors.New("no embedded database")
)

// Header is what an archive says about itself before anything else.
type Header struct {
	Format  int              `json:"format"`
	Created time.Time        `json:"created"` // the database is as of this moment
	Version string           `json:"version"` // of the Steward that wrote the archive
	Schema  map[string]int64 `json:"schema"`  // room → its newest migration
	Files   int              `json:"files"`
	Bytes   int64            `json:"bytes"` // of all files
	Without []string         `json:"without,omitempty"`
}

// Entry is one file of an archive.
type Entry struct {
	Path   string `json:"path"` // slash-separated, relative to the data directory
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // lower case hex
}

// Manifest closes an archive.
type Manifest struct {
	Header     Header  `json:"header"`
	Devices    int64   `json:"devices"`    // registered
	Events     int64   `json:"events"`     // in the ledger's signed tree
	Checkpoint string  `json:"checkpoint"` // the ledger's signed tree head; empty before the first
	Entries    []Entry `json:"entries"`
}

// allowed are the top folders and files of a data directory that an archive may have.
var allowed = map[string]bool{databaseName: true, "keys": true, "artifacts": true, "metrics": true}

// checkPath refuses names that would be written outside of the data directory, or where no backup has put
// anything.
func checkPath(name string) error {
	top, _, _ := strings.Cut(name, "/")
	if path.Clean(name) != name || path.IsAbs(name) || strings.Contains(name, "\\") || strings.ContainsRune(name, 0) || !allowed[top] || len(name) > 4096 {
		return fmt.Errorf("%w: it holds the file name %.200q", ErrDamaged, name)
	}
	if (top == databaseName) != (name == databaseName) || (top != databaseName && top == name) {
		return fmt.Errorf("%w: it holds the file name %.200q", ErrDamaged, name)
	}
	return nil
}
