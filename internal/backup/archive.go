package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/klauspost/compress/zstd"
)

// Progress is told how far the work is, in bytes. What names the part; total is 0 while it isn't known.
type Progress func(what string, done, total int64)

func (p Progress) tell(what string, done, total int64) {
	if p != nil {
		p(what, done, total)
	}
}

// writer writes an archive from its inside: tar into zstd into age.
type writer struct {
	tar    *tar.Writer
	closes []io.Closer // from the inside out
	at     time.Time   // of all files
}

func newWriter(w io.Writer, recipients []age.Recipient, at time.Time) (*writer, error) {
	out := &writer{at: at}
	if len(recipients) > 0 {
		sealed, err := age.Encrypt(w, recipients...)
		if err != nil {
			return nil, fmt.Errorf("encrypt the archive: %w", err)
		}
		w, out.closes = sealed, append(out.closes, sealed)
	}
	packed, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(2), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("compress the archive: %w", err)
	}
	out.tar = tar.NewWriter(packed)
	out.closes = append([]io.Closer{out.tar, packed}, out.closes...)
	return out, nil
}

func (w *writer) close() error {
	for _, c := range w.closes {
		if err := c.Close(); err != nil {
			return fmt.Errorf("end the archive: %w", err)
		}
	}
	return nil
}

// add writes one file of exactly size bytes.
func (w *writer) add(name string, size int64, r io.Reader) (Entry, error) {
	err := w.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, Typeflag: tar.TypeReg, ModTime: w.at, Format: tar.FormatPAX})
	if err != nil {
		return Entry{}, fmt.Errorf("write %s: %w", name, err)
	}
	sum := sha256.New()
	if n, err := io.Copy(w.tar, io.TeeReader(io.LimitReader(r, size), sum)); err != nil {
		return Entry{}, fmt.Errorf("write %s: %w", name, err)
	} else if n < size {
		return Entry{}, fmt.Errorf("write %s: the file has become %d bytes shorter", name, size-n)
	}
	return Entry{Path: name, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))}, nil
}

func (w *writer) addJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.add(name, int64(len(data)), bytes.NewReader(data))
	return err
}

// reader reads an archive from its outside and checks it on the way.
type reader struct {
	header    Header
	encrypted bool

	tar  *tar.Reader
	zstd *zstd.Decoder
	seen map[string]Entry
	read int64
}

// openArchive finds out how the archive is wrapped, opens it, and reads its header. Close the reader.
func openArchive(r io.Reader, identities []age.Identity) (*reader, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	out := &reader{seen: map[string]Entry{}}
	plain, err := out.unseal(in, identities)
	if err != nil {
		return nil, err
	}
	// One block of the frames that we write has at most 8 MiB of history.
	if out.zstd, err = zstd.NewReader(plain, zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderConcurrency(2)); err != nil {
		return nil, err
	}
	out.tar = tar.NewReader(out.zstd)
	if err := out.readHeader(); err != nil {
		out.close()
		return nil, err
	}
	return out, nil
}

func (r *reader) close() { r.zstd.Close() }

const (
	ageMagic  = "age-encryption.org/"
	zstdMagic = "\x28\xb5\x2f\xfd" // RFC 8878, 3.1.1
)

func (r *reader) unseal(in *bufio.Reader, identities []age.Identity) (io.Reader, error) {
	start, err := in.Peek(len(ageMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(start, []byte(zstdMagic)):
		return in, nil
	case bytes.HasPrefix(start, []byte(ageMagic)), bytes.HasPrefix(start, []byte(armor.Header[:len(ageMagic)])):
		r.encrypted = true
	case len(start) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrDamaged)
	default:
		return nil, fmt.Errorf("%w: it is no backup of Steward", ErrDamaged)
	}
	if len(identities) == 0 {
		return nil, ErrNeedsKey
	}
	var sealed io.Reader = in
	if !bytes.HasPrefix(start, []byte(ageMagic)) {
		sealed = armor.NewReader(in)
	}
	plain, err := age.Decrypt(sealed, identities...)
	var wrong *age.NoIdentityMatchError
	switch {
	case errors.Is(err, ErrNeedsKey): // of an identity that asks somebody
		return nil, err
	case errors.As(err, &wrong):
		return nil, ErrKey
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return plain, nil
}

func (r *reader) readHeader() error {
	h, err := r.tar.Next()
	if err != nil {
		return damaged("it has no beginning", err)
	}
	if h.Name != headerName {
		return fmt.Errorf("%w: it is no backup of Steward", ErrDamaged)
	}
	if err := r.readJSON(h, maxHeaderBytes, &r.header); err != nil {
		return err
	}
	if r.header.Format > Format {
		return fmt.Errorf("%w (%s): its format is %d and this one reads up to %d", ErrNewer, r.header.Version, r.header.Format, Format)
	}
	return nil
}

func (r *reader) readJSON(h *tar.Header, limit int64, v any) error {
	if h.Size > limit {
		return fmt.Errorf("%w: %s has %d bytes", ErrDamaged, h.Name, h.Size)
	}
	data, err := io.ReadAll(r.tar)
	if err != nil {
		return damaged("in "+h.Name, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return damaged("in "+h.Name, err)
	}
	return nil
}

// damaged says where an archive is not what it should be. What a system call has refused is no fault of
// the archive.
func damaged(where string, err error) error {
	var path *os.PathError
	switch {
	case errors.Is(err, context.Canceled), errors.As(err, &path):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it was cut off (%s)", ErrDamaged, where)
	}
	return fmt.Errorf("%w: %s: %w", ErrDamaged, where, err)
}

// each gives every file to take, which must read all of it, and then checks that the archive is whole.
func (r *reader) each(ctx context.Context, progress Progress, take func(name string, size int64, body io.Reader) error) (Manifest, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Manifest{}, err
		}
		h, err := r.tar.Next()
		if err != nil {
			return Manifest{}, damaged("its manifest is missing", err)
		}
		if h.Name == manifestName {
			return r.finish(h)
		}
		if err := r.one(ctx, h, progress, take); err != nil {
			return Manifest{}, err
		}
	}
}

func (r *reader) one(ctx context.Context, h *tar.Header, progress Progress, take func(string, int64, io.Reader) error) error {
	if err := checkPath(h.Name); err != nil {
		return err
	}
	if _, twice := r.seen[h.Name]; twice || h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > r.header.Bytes-r.read || len(r.seen) >= r.header.Files {
		return fmt.Errorf("%w: it holds %s, which its header doesn't announce", ErrDamaged, h.Name)
	}
	sum := sha256.New()
	body := &counted{ctx: ctx, in: io.TeeReader(r.tar, sum), tell: func(n int64) { progress.tell(topOf(h.Name), r.read+n, r.header.Bytes) }}
	if err := take(h.Name, h.Size, body); err != nil {
		if body.err != nil {
			return damaged("in "+h.Name, body.err)
		}
		return err
	}
	if body.n != h.Size {
		return fmt.Errorf("%w: it was cut off (in %s)", ErrDamaged, h.Name)
	}
	r.read += h.Size
	r.seen[h.Name] = Entry{Path: h.Name, Size: h.Size, SHA256: hex.EncodeToString(sum.Sum(nil))}
	return nil
}

// finish compares what was read with the manifest, and sees to it that nothing comes after it.
func (r *reader) finish(h *tar.Header) (Manifest, error) {
	var m Manifest
	if err := r.readJSON(h, maxManifestBytes, &m); err != nil {
		return m, err
	}
	for _, e := range m.Entries {
		got, ok := r.seen[e.Path]
		switch {
		case !ok:
			return m, fmt.Errorf("%w: %s is missing", ErrDamaged, e.Path)
		case got != e:
			return m, fmt.Errorf("%w: %s is not what was backed up: its SHA-256 is %s and not %s", ErrDamaged, e.Path, got.SHA256, e.SHA256)
		}
		delete(r.seen, e.Path)
	}
	for name := range r.seen {
		return m, fmt.Errorf("%w: its manifest doesn't name %s", ErrDamaged, name)
	}
	if _, err := r.tar.Next(); !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("%w: it goes on after its manifest", ErrDamaged)
	}
	// Read to the very end: the checksum of zstd and the last chunk of age come after the tar file.
	if _, err := io.Copy(io.Discard, r.zstd); err != nil {
		return m, damaged("at its end", err)
	}
	m.Header = r.header
	return m, nil
}

// counted tells how much was read, keeps the reader's error apart from the writer's, and ends with ctx.
type counted struct {
	ctx  context.Context
	in   io.Reader
	n    int64
	err  error
	tell func(n int64)
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		c.err = err
		return 0, err
	}
	n, err := c.in.Read(p)
	c.n += int64(n)
	c.tell(c.n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
