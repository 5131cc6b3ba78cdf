// Package packages reads the databases of package managers directly: dpkg, apk, opkg and rpm (SQLite and
// ndb). No program of the machine is run, so it works in the smallest image and as any user that may
// read the files. The parsers take bytes that a broken disk or a stranger may have written: they
// return errors, never panic, and never read more than the limits below.
package packages

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"steward/internal/wire"
)

// Limits of what is read.
const (
	maxTextBytes = 256 << 20 // of one text database
	maxLineBytes = 1 << 20
	// MaxPackages bounds the list of one machine, so that its document stays below the wire's limit.
	MaxPackages = 20_000
)

// errTooMany says that a machine has more packages than a document holds.
var errTooMany = fmt.Errorf("more than %d packages", MaxPackages)

// database is one place where a manager keeps what is installed.
type database struct {
	manager string
	path    string // below the root; a pattern of filepath.Glob
	read    func(path string) ([]wire.Package, error)
}

// databases lists all places, newest first where a manager has moved. Of one manager every existing
// place is read: dpkg has both status and status.d in some images.
func databases() []database {
	return []database{
		{"dpkg", "var/lib/dpkg/status", textReader(parseDpkg)},
		{"dpkg", "var/lib/dpkg/status.d/*", textReader(parseDpkg)},
		{"apk", "usr/lib/apk/db/installed", textReader(parseApk)},
		{"apk", "lib/apk/db/installed", textReader(parseApk)},
		{"opkg", "usr/lib/opkg/status", textReader(parseOpkg)},
		{"opkg", "var/lib/opkg/status", textReader(parseOpkg)},
		{"rpm", "usr/lib/sysimage/rpm/rpmdb.sqlite", readRPMSQLite},
		{"rpm", "usr/lib/sysimage/rpm/Packages.db", readRPMNdb},
		{"rpm", "usr/lib/sysimage/rpm/Packages", refuseBerkeley},
		{"rpm", "var/lib/rpm/rpmdb.sqlite", readRPMSQLite},
		{"rpm", "var/lib/rpm/Packages.db", readRPMNdb},
		{"rpm", "var/lib/rpm/Packages", refuseBerkeley},
	}
}

// Result of a reading.
type Result struct {
	Packages []wire.Package // in the order of manager, name, architecture, version; no duplicates
	Missing  []wire.Missing // databases that are there and could not be read
	Found    int            // databases that are there
}

// Read reads all databases below root ("/" on a real machine).
func Read(root string) Result {
	var res Result
	seen := map[string]bool{} // resolved paths: /var/lib/rpm may be a link to /usr/lib/sysimage/rpm
	for _, db := range databases() {
		for _, path := range glob(root, db.path) {
			if resolved, err := filepath.EvalSymlinks(path); err == nil {
				if seen[resolved] {
					continue
				}
				seen[resolved] = true
			}
			res.Found++
			pkgs, err := db.read(path)
			res.Packages = append(res.Packages, pkgs...)
			if err != nil {
				res.Missing = append(res.Missing, wire.Missing{What: db.manager + " packages", Reason: reason(root, path, err)})
			}
		}
	}
	slices.SortFunc(res.Packages, compare)
	res.Packages = slices.Compact(res.Packages)
	if len(res.Packages) > MaxPackages {
		res.Packages = res.Packages[:MaxPackages]
		res.Missing = append(res.Missing, wire.Missing{What: "packages", Reason: errTooMany.Error()})
	}
	return res
}

// Stamp names the state of all databases by path, size and time of change: an equal stamp needs no new
// reading.
func Stamp(root string) string {
	var b strings.Builder
	for _, db := range databases() {
		for _, path := range append(glob(root, db.path), glob(root, db.path+"-wal")...) {
			if info, err := os.Stat(path); err == nil {
				fmt.Fprintf(&b, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
			}
		}
	}
	return b.String()
}

func glob(root, pattern string) []string {
	paths, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		return nil // only for a malformed pattern, and ours are constants
	}
	return slices.DeleteFunc(paths, func(p string) bool { return strings.HasSuffix(p, ".md5sums") })
}

func compare(a, b wire.Package) int {
	return cmp.Or(cmp.Compare(a.Manager, b.Manager), cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Architecture, b.Architecture), cmp.Compare(a.Version, b.Version))
}

// reason says what is wrong without the test tree's prefix.
func reason(root, path string, err error) string {
	shown := "/" + strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
	if errors.Is(err, fs.ErrPermission) {
		return shown + ": permission denied"
	}
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return shown + ": " + err.Error()
}

func textReader(parse func(io.Reader) ([]wire.Package, error)) func(string) ([]wire.Package, error) {
	return func(path string) ([]wire.Package, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // nothing was written
		return parse(io.LimitReader(f, maxTextBytes))
	}
}

// stanzas calls each with the fields of every stanza of a control file (deb822): "Key: value" lines,
// continuation lines left out, an empty line between stanzas.
func stanzas(r io.Reader, wanted []string, each func(fields map[string]string) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxLineBytes)
	fields := map[string]string{}
	flush := func() error {
		if len(fields) == 0 {
			return nil
		}
		err := each(fields)
		clear(fields)
		return err
	}
	for lines.Scan() {
		line := lines.Text()
		if strings.TrimSpace(line) == "" {
			if err := flush(); err != nil {
				return err
			}
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if ok && slices.Contains(wanted, key) {
			fields[key] = strings.TrimSpace(value)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return flush()
}

// parseDpkg reads /var/lib/dpkg/status (dpkg-query(1) explains the states). Packages whose files are
// on the disk count, even when their configuration was interrupted; "config-files" is a removed one.
// In status.d, as distroless images have it, there is no Status.
func parseDpkg(r io.Reader) ([]wire.Package, error) {
	return parseControl(r, "dpkg")
}

// parseOpkg reads opkg's status file, which has dpkg's form.
func parseOpkg(r io.Reader) ([]wire.Package, error) { return parseControl(r, "opkg") }

func parseControl(r io.Reader, manager string) ([]wire.Package, error) {
	var pkgs []wire.Package
	wanted := []string{"Package", "Version", "Architecture", "Source", "Status"}
	err := stanzas(r, wanted, func(f map[string]string) error {
		if f["Package"] == "" || f["Version"] == "" || !installed(f["Status"]) {
			return nil
		}
		if len(pkgs) >= MaxPackages {
			return errTooMany
		}
		p := wire.Package{Manager: manager, Name: f["Package"], Version: f["Version"], Architecture: f["Architecture"]}
		p.Source, p.SourceVersion = splitSource(f["Source"])
		if p.Source == p.Name {
			p.Source = ""
		}
		if p.SourceVersion == p.Version {
			p.SourceVersion = ""
		}
		pkgs = append(pkgs, p)
		return nil
	})
	return pkgs, err
}

func installed(status string) bool {
	if status == "" {
		return true
	}
	words := strings.Fields(status)
	if len(words) != 3 {
		return false
	}
	switch words[2] {
	case "installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending":
		return true
	}
	return false
}

// splitSource reads "glibc (2.36-9)" or "glibc".
func splitSource(s string) (name, version string) {
	name, rest, has := strings.Cut(s, " (")
	if has {
		version = strings.TrimSuffix(rest, ")")
	}
	return name, version
}

// parseApk reads apk's installed database: one letter, a colon and a value in each line (apk-v2
// format), an empty line between packages.
func parseApk(r io.Reader) ([]wire.Package, error) {
	var pkgs []wire.Package
	err := stanzas(r, []string{"P", "V", "A", "o"}, func(f map[string]string) error {
		if f["P"] == "" || f["V"] == "" {
			return nil
		}
		if len(pkgs) >= MaxPackages {
			return errTooMany
		}
		p := wire.Package{Manager: "apk", Name: f["P"], Version: f["V"], Architecture: f["A"], Source: f["o"]}
		if p.Source == p.Name {
			p.Source = ""
		}
		pkgs = append(pkgs, p)
		return nil
	})
	return pkgs, err
}
