package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

var archiveTime = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

// sample writes an archive of three small files.
func sample(t testing.TB, recipients ...age.Recipient) []byte {
	t.Helper()
	files := map[string]string{databaseName: strings.Repeat("database ", 20_000), "keys/envelope.pem": "secret", "metrics/wal/00000000": ""}
	var out bytes.Buffer
	w, err := newWriter(&out, recipients, archiveTime)
	if err != nil {
		t.Fatal(err)
	}
	m := Manifest{Devices: 3, Header: Header{Format: Format, Created: archiveTime, Version: "1", Files: len(files)}}
	for _, body := range files {
		m.Header.Bytes += int64(len(body))
	}
	if err := w.addJSON(headerName, m.Header); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{databaseName, "keys/envelope.pem", "metrics/wal/00000000"} {
		e, err := w.add(name, int64(len(files[name])), strings.NewReader(files[name]))
		if err != nil {
			t.Fatal(err)
		}
		m.Entries = append(m.Entries, e)
	}
	if err := errors.Join(w.addJSON(manifestName, m), w.close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func verify(data []byte, identities ...age.Identity) (Result, error) {
	return Verify(context.Background(), RestoreConfig{Identities: identities}, bytes.NewReader(data))
}

// passphrase is a lock that opens faster than what people get.
func passphrase(t testing.TB, text string) (*age.ScryptRecipient, *age.ScryptIdentity) {
	t.Helper()
	r, err := age.NewScryptRecipient(text)
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(8)
	i, err := age.NewScryptIdentity(text)
	if err != nil {
		t.Fatal(err)
	}
	return r, i
}

func TestArchiveIsReadAsItWasWritten(t *testing.T) {
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	lock, opener := passphrase(t, "correct horse")
	for name, c := range map[string]struct {
		to   []age.Recipient
		with []age.Identity
	}{
		"plain":      {},
		"recipient":  {[]age.Recipient{key.Recipient()}, []age.Identity{key}},
		"passphrase": {[]age.Recipient{lock}, []age.Identity{opener}},
	} {
		got, err := verify(sample(t, c.to...), c.with...)
		if err != nil || got.Devices != 3 || len(got.Entries) != 3 || got.Encrypted != (len(c.to) > 0) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestEncryptedArchiveShowsNothingOfItsContent(t *testing.T) {
	lock, _ := passphrase(t, "correct horse")
	data := sample(t, lock)
	for _, secret := range []string{"secret", "envelope", "steward", "database"} {
		if bytes.Contains(data, []byte(secret)) {
			t.Errorf("%q stands in the archive", secret)
		}
	}
}

func TestWrongKeyIsTold(t *testing.T) {
	lock, _ := passphrase(t, "correct horse")
	_, wrong := passphrase(t, "battery staple")
	if _, err := verify(sample(t, lock), wrong); !errors.Is(err, ErrKey) {
		t.Errorf("wrong passphrase: %v", err)
	}
	if _, err := verify(sample(t, lock)); !errors.Is(err, ErrNeedsKey) {
		t.Errorf("no passphrase: %v", err)
	}
	ours, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify(sample(t, ours.Recipient()), other); !errors.Is(err, ErrKey) {
		t.Errorf("another's key: %v", err)
	}
}

func TestCutOffArchiveIsTold(t *testing.T) {
	lock, opener := passphrase(t, "correct horse")
	for name, c := range map[string]struct {
		data []byte
		with []age.Identity
	}{"plain": {data: sample(t)}, "encrypted": {sample(t, lock), []age.Identity{opener}}} {
		for _, keep := range []int{0, 1, 10, len(c.data) / 2, len(c.data) - 1000, len(c.data) - 20, len(c.data) - 1} {
			if _, err := verify(c.data[:max(0, keep)], c.with...); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s cut after %d of %d bytes: %v", name, keep, len(c.data), err)
			}
		}
	}
}

func TestEveryFlippedBitIsTold(t *testing.T) {
	lock, opener := passphrase(t, "correct horse")
	random := rand.New(rand.NewPCG(3, 4))
	for name, c := range map[string]struct {
		data []byte
		with []age.Identity
	}{"plain": {data: sample(t)}, "encrypted": {sample(t, lock), []age.Identity{opener}}} {
		for range 300 {
			flipped := bytes.Clone(c.data)
			at := random.IntN(len(flipped))
			flipped[at] ^= 1 << random.IntN(8)
			_, err := verify(flipped, c.with...)
			if err == nil && name == "plain" && bytes.Equal(unpacked(t, flipped), unpacked(t, c.data)) {
				continue // one of the few bits of zstd that mean nothing
			}
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrKey) {
				t.Errorf("%s with byte %d of %d changed: %v", name, at, len(flipped), err)
			}
		}
	}
}

func TestForeignFilesAreNoBackups(t *testing.T) {
	for name, data := range map[string]string{
		"text": "hello, this is some text", "gzip": "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "zstd of something": string(packed(t, []byte("not a tar file"))),
	} {
		if _, err := verify([]byte(data)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func unpacked(t testing.TB, data []byte) []byte {
	t.Helper()
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	out, err := dec.DecodeAll(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func packed(t testing.TB, data []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return enc.EncodeAll(data, nil)
}

// forged is a plain archive with the given tar entries after its header.
func forged(t testing.TB, header string, entries ...tar.Header) []byte {
	t.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	write := func(h tar.Header, body string) {
		h.Mode = 0o600
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	write(tar.Header{Name: headerName}, header)
	for _, h := range entries {
		write(h, "x")
	}
	write(tar.Header{Name: manifestName}, `{"entries":[]}`)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(t, raw.Bytes())
}

func TestForgedArchivesAreRefused(t *testing.T) {
	const header = `{"format":1,"files":2,"bytes":2}`
	for name, entry := range map[string]tar.Header{
		"upwards": {Name: "keys/../../etc/cron.d/x"}, "absolute": {Name: "/etc/passwd"}, "elsewhere": {Name: "bootstrap.json"},
		"below the database": {Name: "steward.db/x"}, "folder as file": {Name: "keys"}, "backslash": {Name: `keys\..\x`},
		"symbolic link": {Name: "keys/x", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, "hard link": {Name: "keys/x", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
		"device": {Name: "keys/x", Typeflag: tar.TypeChar}, "not in the manifest": {Name: "keys/x"},
	} {
		if _, err := verify(forged(t, header, entry)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := verify(forged(t, header, tar.Header{Name: "keys/x"}, tar.Header{Name: "keys/x"})); !errors.Is(err, ErrDamaged) {
		t.Errorf("the same name twice: %v", err)
	}
	if _, err := verify(forged(t, `{"format":1,"files":9,"bytes":1}`, tar.Header{Name: "keys/x"}, tar.Header{Name: "keys/y"})); !errors.Is(err, ErrDamaged) {
		t.Errorf("more bytes than announced: %v", err)
	}
	if _, err := verify(forged(t, `{"format":2,"version":"9.0.0"}`)); !errors.Is(err, ErrNewer) || !strings.Contains(fmt.Sprint(err), "9.0.0") {
		t.Errorf("a later format: %v", err)
	}
	if _, err := verify(forged(t, `{"format":`)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a broken header: %v", err)
	}
}

func TestNewerTablesAreRefusedAndOlderOnesAreNot(t *testing.T) {
	if err := checkSchema(Header{Version: "9.0.0", Schema: map[string]int64{"ledger": 1, "registry": 1}}); err != nil {
		t.Errorf("older tables: %v", err)
	}
	for _, schema := range []map[string]int64{{"ledger": 1000}, {"room-of-the-future": 1}} {
		if err := checkSchema(Header{Version: "9.0.0", Schema: schema}); !errors.Is(err, ErrNewer) {
			t.Errorf("%v: %v", schema, err)
		}
	}
}

// FuzzArchive reads archives whose outermost layers are what they should be and whose content is anybody's.
func FuzzArchive(f *testing.F) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
	}
	whole, err := dec.DecodeAll(sample(f), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:4096])
	f.Add([]byte(headerName))
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := verify(packed(t, content))
		if err == nil && len(got.Entries) != got.Header.Files {
			t.Errorf("accepted with %d of %d files", len(got.Entries), got.Header.Files)
		}
	})
}
