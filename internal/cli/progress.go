package cli

import (
	"fmt"
	"io"
	"os"
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

func (b *bar) show(what string, sent, total int64) {
	if b.w == nil || total == 0 {
		return
	}
	const width = 30
	done := int(sent * width / total)
	fmt.Fprintf(b.w, "\r%-20.20s [%s%s] %3d %% of %s\x1b[K", what,
		strings.Repeat("█", done), strings.Repeat("·", width-done), sent*100/total, formatBytes(float64(total)))
	b.shown = true
}

func (b *bar) end() {
	if b.shown {
		fmt.Fprintln(b.w)
	}
}
