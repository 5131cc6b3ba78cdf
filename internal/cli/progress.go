package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"
)

// bar draws a progress bar on a terminal, and nothing elsewhere.
type bar struct {
	w     io.Writer
	shown bool
}

func newBar(w io.Writer) *bar {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return &bar{}
	}
	return &bar{w: w}
}

// show tells of bytes.
func (b *bar) show(what string, sent, total int64) {
	b.draw(what, sent, total, formatBytes(float64(total)))
}

// count tells of pieces.
func (b *bar) count(what string, done, total int64) {
	b.draw(what, done, total, strconv.FormatInt(total, 10))
}

func (b *bar) draw(what string, part, total int64, of string) {
	if b.w == nil || total == 0 {
		return
	}
	const width = 30
	done := int(min(part, total) * width / total)
	fmt.Fprintf(b.w, "\r%-20.20s [%s%s] %3d %% of %s\x1b[K", what,
		strings.Repeat("█", done), strings.Repeat("·", width-done), min(part, total)*100/total, of)
	b.shown = true
}

func (b *bar) end() {
	if b.shown {
		fmt.Fprintln(b.w)
	}
}
