package packages

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steward/internal/wire"
)

const dpkgStatus = `Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-8)
Version: 2.36-9+deb12u4
Description: GNU C Library
 Package: not-a-field
 .
 more

Package: nano
Status: deinstall ok config-files
Architecture: amd64
Version: 7.2-1

Package: openssl
Status: install ok half-configured
Version: 3.0.11-1
Architecture: amd64
`

const apkInstalled = `C:Q1abc=
P:busybox
V:1.36.1-r15
A:aarch64
o:busybox
F:bin

P:ssl_client
V:1.36.1-r15
A:aarch64
o:busybox
`

func write(t *testing.T, root, path string, content []byte) {
	t.Helper()
	full := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func unzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTextDatabasesAreRead(t *testing.T) {
	root := t.TempDir()
	write(t, root, "var/lib/dpkg/status", []byte(dpkgStatus))
	write(t, root, "var/lib/dpkg/status.d/base-files", []byte("Package: base-files\nVersion: 12.4\nArchitecture: amd64\n"))
	write(t, root, "var/lib/dpkg/status.d/base-files.md5sums", []byte("0 usr/x\n"))
	write(t, root, "lib/apk/db/installed", []byte(apkInstalled))
	write(t, root, "usr/lib/opkg/status", []byte("Package: dnsmasq\nVersion: 2.86-13\nStatus: install user installed\nArchitecture: mips_24kc\n\n"))
	got := Read(root)
	want := []wire.Package{
		{Manager: "apk", Name: "busybox", Version: "1.36.1-r15", Architecture: "aarch64"},
		{Manager: "apk", Name: "ssl_client", Version: "1.36.1-r15", Architecture: "aarch64", Source: "busybox"},
		{Manager: "dpkg", Name: "base-files", Version: "12.4", Architecture: "amd64"},
		{Manager: "dpkg", Name: "libc6", Version: "2.36-9+deb12u4", Architecture: "amd64", Source: "glibc", SourceVersion: "2.36-8"},
		{Manager: "dpkg", Name: "openssl", Version: "3.0.11-1", Architecture: "amd64"},
		{Manager: "opkg", Name: "dnsmasq", Version: "2.86-13", Architecture: "mips_24kc"},
	}
	if diff := cmp.Diff(want, got.Packages); diff != "" {
		t.Error(diff)
	}
	if len(got.Missing) > 0 {
		t.Errorf("missing: %v", got.Missing)
	}
}

// wantRPM is what `rpm -qa` says of the fixture, which rpm 4.18 wrote. opcua-server's header spans
// more than fifty overflow pages.
var wantRPM = []wire.Package{
	{Manager: "rpm", Name: "gateway-base", Version: "1.4.2-3.el9", Architecture: "noarch"},
	{Manager: "rpm", Name: "modbus-bridge", Version: "2:0.9-1", Architecture: "noarch"},
	{Manager: "rpm", Name: "modbus-bridge-doc", Version: "2:0.9-1", Architecture: "noarch", Source: "modbus-bridge"},
	{Manager: "rpm", Name: "opcua-server", Version: "12.0~rc1-7.el9", Architecture: "noarch"},
}

func TestRPMDatabaseInSQLiteIsRead(t *testing.T) {
	for _, dir := range []string{"var/lib/rpm", "usr/lib/sysimage/rpm"} {
		root := t.TempDir()
		write(t, root, dir+"/rpmdb.sqlite", unzip(t, "rpmdb.sqlite.gz"))
		got := Read(root)
		if diff := cmp.Diff(wantRPM, got.Packages); diff != "" || len(got.Missing) > 0 {
			t.Errorf("%s: %s %v", dir, diff, got.Missing)
		}
	}
}

func TestDatabaseBehindALinkIsReadOnce(t *testing.T) {
	root := t.TempDir()
	write(t, root, "usr/lib/sysimage/rpm/rpmdb.sqlite", unzip(t, "rpmdb.sqlite.gz"))
	if err := os.MkdirAll(filepath.Join(root, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../usr/lib/sysimage/rpm", filepath.Join(root, "var/lib/rpm")); err != nil {
		t.Fatal(err)
	}
	if got := Read(root); got.Found != 1 || len(got.Packages) != len(wantRPM) {
		t.Errorf("found %d databases with %d packages", got.Found, len(got.Packages))
	}
}

// The log holds a committed change (opcua-server became modbus-bridge-doc, gateway-base is removed) and
// an uncommitted one (all are removed), as after a kill of rpm.
func TestCommittedFramesOfTheWriteAheadLogCount(t *testing.T) {
	root := t.TempDir()
	write(t, root, "var/lib/rpm/rpmdb.sqlite", unzip(t, "rpmdb.sqlite.gz"))
	before := Stamp(root)
	write(t, root, "var/lib/rpm/rpmdb.sqlite-wal", unzip(t, "rpmdb.sqlite-wal.gz"))
	if Stamp(root) == before {
		t.Error("the log does not change the stamp")
	}
	got := Read(root)
	if diff := cmp.Diff(wantRPM[1:3], got.Packages); diff != "" || len(got.Missing) > 0 {
		t.Errorf("%s %v", diff, got.Missing)
	}
}

// headers returns the fixture's header blobs.
func headers(t testing.TB) [][]byte {
	t.Helper()
	db, err := openSQLite(bytes.NewReader(unzip(t, "rpmdb.sqlite.gz")), nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := db.rootOf("Packages")
	if err != nil {
		t.Fatal(err)
	}
	var blobs [][]byte
	if err := db.walk(root, 0, func(c []column) error {
		blobs = append(blobs, c[1].bytes)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return blobs
}

// ndb lays blobs out as lib/backend/ndb/rpmpkg.c does, with a freed slot between.
func ndb(blobs [][]byte) []byte {
	out := make([]byte, ndbPageBytes)
	copy(out, ndbHeaderMagic)
	binary.LittleEndian.PutUint32(out[12:], 1)
	for at := 32; at < len(out); at += ndbSlotBytes {
		copy(out[at:], ndbSlotMagic)
	}
	for i, blob := range blobs {
		slot := out[32+2*i*ndbSlotBytes:]
		binary.LittleEndian.PutUint32(slot[4:], uint32(i+1))
		binary.LittleEndian.PutUint32(slot[8:], uint32(len(out)/ndbSlotBytes))
		head := make([]byte, ndbSlotBytes)
		copy(head, ndbBlobMagic)
		binary.LittleEndian.PutUint32(head[4:], uint32(i+1))
		binary.LittleEndian.PutUint32(head[12:], uint32(len(blob)))
		out = append(append(out, head...), blob...)
		out = append(out, make([]byte, ndbSlotBytes-len(out)%ndbSlotBytes)...)
	}
	return out
}

func TestRPMDatabaseInNdbIsRead(t *testing.T) {
	root := t.TempDir()
	write(t, root, "usr/lib/sysimage/rpm/Packages.db", ndb(headers(t)))
	got := Read(root)
	if diff := cmp.Diff(wantRPM, got.Packages); diff != "" || len(got.Missing) > 0 {
		t.Errorf("%s %v", diff, got.Missing)
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	sqlite := unzip(t, "rpmdb.sqlite.gz")
	cases := []struct {
		name, path string
		content    []byte
		want       string
	}{
		{"Berkeley DB", "var/lib/rpm/Packages", []byte("x"), "Berkeley DB"},
		{"no SQLite", "var/lib/rpm/rpmdb.sqlite", []byte(strings.Repeat("x", 4096)), "not an SQLite file"},
		{"cut SQLite", "var/lib/rpm/rpmdb.sqlite", sqlite[:len(sqlite)/2], "page"},
		{"empty ndb", "var/lib/rpm/Packages.db", nil, "ndb header"},
		{"endless line", "lib/apk/db/installed", bytes.Repeat([]byte("P"), maxLineBytes+10), "token too long"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, c.path, c.content)
			got := Read(root)
			if len(got.Missing) != 1 || !strings.Contains(got.Missing[0].Reason, c.want) || strings.Contains(got.Missing[0].Reason, root) {
				t.Errorf("missing %+v, want a reason with %q", got.Missing, c.want)
			}
		})
	}
}

func TestMachineWithoutDatabases(t *testing.T) {
	if got := Read(t.TempDir()); got.Found != 0 || len(got.Packages) != 0 || len(got.Missing) != 0 {
		t.Errorf("%+v", got)
	}
}

func FuzzControl(f *testing.F) {
	f.Add([]byte(dpkgStatus))
	f.Add([]byte(apkInstalled))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func(io.Reader) ([]wire.Package, error){parseDpkg, parseApk, parseOpkg} {
			pkgs, _ := parse(bytes.NewReader(data))
			for _, p := range pkgs {
				if p.Name == "" || p.Version == "" {
					t.Errorf("package without name or version: %+v", p)
				}
			}
		}
	})
}

func FuzzRPMHeader(f *testing.F) {
	for _, blob := range headers(f) {
		f.Add(blob[:min(len(blob), 4096)])
		f.Add(blob)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, isPackage, err := parseHeader(data)
		if isPackage && (err != nil || p.Name == "" || p.Version == "") {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

func FuzzRPMSQLite(f *testing.F) {
	whole := unzip(f, "rpmdb.sqlite.gz")
	f.Add(uint32(24), byte(1), []byte(nil))
	f.Add(uint32(4096+3), byte(0xff), unzip(f, "rpmdb.sqlite-wal.gz")[:9000])
	f.Fuzz(func(t *testing.T, at uint32, value byte, wal []byte) {
		damaged := bytes.Clone(whole)
		damaged[int(at)%len(damaged)] = value
		pkgs, _ := parseRPMSQLite(bytes.NewReader(damaged), bytes.NewReader(wal))
		for _, p := range pkgs {
			if p.Name == "" || p.Version == "" {
				t.Errorf("package without name or version: %+v", p)
			}
		}
	})
}

func FuzzRPMNdb(f *testing.F) {
	f.Add(ndb([][]byte{headers(f)[2]}))
	f.Fuzz(func(t *testing.T, data []byte) {
		pkgs, _ := parseNdb(bytes.NewReader(data))
		for _, p := range pkgs {
			if p.Name == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}
