package packages

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"steward/internal/wire"
)

// Tags of an rpm header that are read (rpm's format manual, "RPM v4 header").
const (
	tagName      = 1000
	tagVersion   = 1001
	tagRelease   = 1002
	tagEpoch     = 1003
	tagArch      = 1022
	tagSourceRPM = 1044
)

// Types of header values.
const (
	typeInt32  = 4
	typeString = 6
)

// Limits of a header. The largest real ones (kernels with their file lists) have some megabytes.
const (
	maxHeaderBytes = 64 << 20
	maxHeaderTags  = 65_536
	entryBytes     = 16
)

var errHeader = errors.New("broken rpm header")

// errBerkeley says honestly that the format of rpm before 4.16 is not read.
var errBerkeley = errors.New("the rpm database is in the Berkeley DB format, which the agent does not read; `rpmdb --rebuilddb` with a newer rpm converts it")

func refuseBerkeley(string) ([]wire.Package, error) { return nil, errBerkeley }

// parseHeader reads one package from the header blob of a database: count of entries, bytes of data,
// the entries (tag, type, offset, count), the data.
func parseHeader(blob []byte) (p wire.Package, isPackage bool, err error) {
	if len(blob) < 8 {
		return p, false, errHeader
	}
	count := int64(binary.BigEndian.Uint32(blob))
	size := int64(binary.BigEndian.Uint32(blob[4:]))
	if count > maxHeaderTags || 8+count*entryBytes+size > int64(len(blob)) {
		return p, false, errHeader
	}
	data := blob[8+count*entryBytes:][:size]
	values := map[uint32]string{}
	for i := range count {
		e := blob[8+i*entryBytes:][:entryBytes]
		tag, kind, offset := binary.BigEndian.Uint32(e), binary.BigEndian.Uint32(e[4:]), int64(binary.BigEndian.Uint32(e[8:]))
		switch tag {
		case tagName, tagVersion, tagRelease, tagEpoch, tagArch, tagSourceRPM:
			v, err := headerValue(data, kind, offset)
			if err != nil {
				return p, false, fmt.Errorf("tag %d: %w", tag, err)
			}
			values[tag] = v
		}
	}
	return packageOf(values)
}

func headerValue(data []byte, kind uint32, offset int64) (string, error) {
	if offset >= int64(len(data)) {
		return "", errHeader
	}
	rest := data[offset:]
	switch kind {
	case typeString:
		end := bytes.IndexByte(rest, 0)
		if end < 0 {
			return "", errHeader
		}
		return strings.ToValidUTF8(string(rest[:end]), "\ufffd"), nil
	case typeInt32:
		if len(rest) < 4 {
			return "", errHeader
		}
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(rest)), 10), nil
	}
	return "", fmt.Errorf("%w: value of type %d", errHeader, kind)
}

// packageOf leaves out gpg-pubkey, which rpm keeps among the packages and which is none.
func packageOf(values map[uint32]string) (p wire.Package, isPackage bool, err error) {
	if values[tagName] == "" || values[tagVersion] == "" {
		return p, false, fmt.Errorf("%w: no name or version", errHeader)
	}
	if values[tagName] == "gpg-pubkey" {
		return p, false, nil
	}
	version := values[tagVersion] + "-" + values[tagRelease]
	if epoch := values[tagEpoch]; epoch != "" && epoch != "0" {
		version = epoch + ":" + version
	}
	p = wire.Package{Manager: "rpm", Name: values[tagName], Version: version, Architecture: values[tagArch]}
	p.Source, p.SourceVersion = splitSourceRPM(values[tagSourceRPM])
	if p.Source == p.Name {
		p.Source = ""
	}
	if p.SourceVersion == values[tagVersion]+"-"+values[tagRelease] {
		p.SourceVersion = ""
	}
	return p, true, nil
}

// splitSourceRPM reads "glibc-2.34-60.el9.src.rpm" as name-version-release.
func splitSourceRPM(s string) (name, version string) {
	s = strings.TrimSuffix(strings.TrimSuffix(s, ".src.rpm"), ".nosrc.rpm")
	release := strings.LastIndexByte(s, '-')
	if release <= 0 {
		return "", ""
	}
	dash := strings.LastIndexByte(s[:release], '-')
	if dash <= 0 {
		return "", ""
	}
	return s[:dash], s[dash+1:]
}

// collector gathers packages from header blobs and goes on after a broken one, keeping the first
// error.
type collector struct {
	pkgs []wire.Package
	err  error
}

func (c *collector) add(blob []byte) error {
	p, isPackage, err := parseHeader(blob)
	switch {
	case err != nil && c.err == nil:
		c.err = fmt.Errorf("after %d packages: %w", len(c.pkgs), err)
	case isPackage && len(c.pkgs) >= MaxPackages:
		return errTooMany
	case isPackage:
		c.pkgs = append(c.pkgs, p)
	}
	return nil
}

// The ndb format (lib/backend/ndb/rpmpkg.c): pages of 4096 bytes with slots of 16 bytes, two of which
// are the file's header, then blobs in blocks of 16 bytes. All numbers are little endian.
const (
	ndbPageBytes   = 4096
	ndbSlotBytes   = 16
	ndbHeaderMagic = "RpmP"
	ndbSlotMagic   = "Slot"
	ndbBlobMagic   = "BlbS"
	ndbMaxPages    = 4096
)

func readRPMNdb(path string) ([]wire.Package, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	return parseNdb(f)
}

func parseNdb(r io.ReaderAt) ([]wire.Package, error) {
	header := make([]byte, 32)
	if _, err := r.ReadAt(header, 0); err != nil {
		return nil, fmt.Errorf("ndb header: %w", err)
	}
	pages := int(binary.LittleEndian.Uint32(header[12:]))
	if string(header[:4]) != ndbHeaderMagic || pages == 0 || pages > ndbMaxPages {
		return nil, errors.New("not an rpm ndb database")
	}
	slots := make([]byte, pages*ndbPageBytes)
	if _, err := r.ReadAt(slots, 0); err != nil {
		return nil, fmt.Errorf("ndb slots: %w", err)
	}
	var c collector
	for at := 2 * ndbSlotBytes; at < len(slots); at += ndbSlotBytes {
		slot := slots[at : at+ndbSlotBytes]
		if string(slot[:4]) != ndbSlotMagic {
			return c.pkgs, errors.New("broken ndb slot")
		}
		index, block := binary.LittleEndian.Uint32(slot[4:]), binary.LittleEndian.Uint32(slot[8:])
		if block == 0 {
			continue // free
		}
		blob, err := ndbBlob(r, int64(block)*ndbSlotBytes, index)
		if err != nil {
			return c.pkgs, err
		}
		if err := c.add(blob); err != nil {
			return c.pkgs, err
		}
	}
	return c.pkgs, c.err
}

func ndbBlob(r io.ReaderAt, offset int64, index uint32) ([]byte, error) {
	head := make([]byte, ndbSlotBytes)
	if _, err := r.ReadAt(head, offset); err != nil {
		return nil, fmt.Errorf("ndb blob %d: %w", index, err)
	}
	length := int64(binary.LittleEndian.Uint32(head[12:]))
	if string(head[:4]) != ndbBlobMagic || binary.LittleEndian.Uint32(head[4:]) != index || length > maxHeaderBytes {
		return nil, fmt.Errorf("broken ndb blob %d", index)
	}
	return readExactly(r, offset+ndbSlotBytes, length)
}

// readExactly reads n bytes without believing n before the bytes are there.
func readExactly(r io.ReaderAt, offset, n int64) ([]byte, error) {
	blob, err := io.ReadAll(io.NewSectionReader(r, offset, n))
	if err != nil {
		return nil, err
	}
	if int64(len(blob)) != n {
		return nil, io.ErrUnexpectedEOF
	}
	return blob, nil
}
