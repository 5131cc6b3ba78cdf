package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand prints the manual page that packages ship: all commands with their flags, in the language of
// man(7).
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man", Short: "Print the manual page", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeMan(cmd.OutOrStdout(), cmd.Root())
		},
	}
}

func writeMan(w io.Writer, root *cobra.Command) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, ".TH STEWARD 1 \"\" \"steward %s\" \"User Commands\"\n", roff(root.Version))
	fmt.Fprintf(out, ".SH NAME\nsteward \\- %s\n", roff(lower(root.Short)))
	fmt.Fprint(out, ".SH SYNOPSIS\n.B steward\n.I COMMAND\n[\\fIFLAG\\fR]...\n.SH DESCRIPTION\n")
	manText(out, root.Long)
	fmt.Fprint(out, ".SH GLOBAL FLAGS\n")
	manFlags(out, root.PersistentFlags())
	fmt.Fprint(out, ".SH COMMANDS\n")
	manTree(out, root)
	fmt.Fprint(out, ".SH SEE ALSO\n.BR steward-agent (8)\n")
	return out.Flush()
}

func manTree(w io.Writer, parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Runnable() {
			fmt.Fprintf(w, ".SS %s\n", roff(c.UseLine()))
			manText(w, first(c.Long, c.Short+"."))
			manFlags(w, c.LocalNonPersistentFlags())
		}
		manTree(w, c)
	}
}

// manText keeps paragraphs, and indented lines as they are.
func manText(w io.Writer, text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		switch {
		case line == "":
			fmt.Fprintln(w, ".PP")
		case strings.HasPrefix(line, "  "):
			fmt.Fprintf(w, ".br\n%s\n", roff(line))
		default:
			fmt.Fprintln(w, roff(line))
		}
	}
}

func manFlags(w io.Writer, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "\\-\\-" + roff(f.Name)
		if f.Shorthand != "" {
			name = "\\-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(w, ".TP\n.B %s %s\n%s\n", name, roff(value), roff(usage))
	})
}

// roff escapes what begins an escape or a request; and minus signs, which would become hyphens.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func lower(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
