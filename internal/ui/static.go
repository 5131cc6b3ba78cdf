package ui

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

//go:embed static
var staticFiles embed.FS

// assets serves the embedded files below /static under names with a hash of their content, so that
// browsers may keep them for ever and never see an old one.
type assets struct {
	urls   map[string]string // "steward.css" → "/static/steward.0123456789ab.css"
	byName map[string]asset  // by the name with the hash
}

type asset struct {
	kind          string
	plain, zipped []byte // zipped is nil when it saves nothing
}

func loadAssets() *assets {
	a := &assets{urls: map[string]string{}, byName: map[string]asset{}}
	names, err := fs.Glob(staticFiles, "static/*")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	for _, name := range names {
		body, err := fs.ReadFile(staticFiles, name)
		if err != nil {
			panic(err) // the embedded tree is part of the program
		}
		base, ext := path.Base(name), path.Ext(name)
		sum := sha256.Sum256(body)
		hashed := strings.TrimSuffix(base, ext) + "." + hex.EncodeToString(sum[:6]) + ext
		a.urls[base] = "/static/" + hashed
		a.byName[hashed] = asset{kind: kindOf(ext), plain: body, zipped: zip(body)}
	}
	return a
}

// kindOf doesn't trust the machine's own MIME table for what browsers refuse when it is wrong.
func kindOf(ext string) string {
	switch ext {
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(ext)
}

func zip(body []byte) []byte {
	var buf bytes.Buffer
	zw, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil
	}
	if _, err := zw.Write(body); err != nil || zw.Close() != nil || buf.Len() >= len(body) {
		return nil
	}
	return buf.Bytes()
}

func (a *assets) serve(w http.ResponseWriter, r *http.Request) {
	f, ok := a.byName[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	a.send(w, r, f)
}

func (a *assets) send(w http.ResponseWriter, r *http.Request, f asset) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	body := f.plain
	if f.zipped != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = f.zipped
	}
	_, _ = w.Write(body) // the reader may have gone
}

func (a *assets) favicon(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, a.urls["icon.svg"], http.StatusFound)
}
