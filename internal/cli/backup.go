package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"steward/internal/backup"
)

func (a *app) backupCommand() *cobra.Command {
	cfg := backup.Config{Version: a.version}
	var out string
	var lock backupLock
	cmd := &cobra.Command{
		Use:   "backup --data DIR --out FILE",
		Short: "Back up a server on its embedded engines, also while it runs",
		Long: `backup writes one archive: the database as it is now, keys, artifacts and metrics. The server goes on.

The archive holds Steward's keys, so it is encrypted (age-encryption.org): for --recipient, of whom this
machine needs no secret, or with a passphrase, which is asked for unless --passphrase-file names it.
--plain leaves it open.

A server on PostgreSQL is backed up with PostgreSQL's tools; see docs/deploy.md.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.DataDir == "" || out == "" {
				return usagef("give the data directory with --data DIR and the archive's name with --out FILE ('-' for standard output)")
			}
			p, err := a.printer(cmd)
			if err != nil {
				return err
			}
			if cfg.Recipients, err = lock.recipients(cmd); err != nil {
				return err
			}
			b := newBar(cmd.ErrOrStderr())
			cfg.Progress = b.show
			var m backup.Manifest
			if out == "-" {
				m, err = backup.Create(cmd.Context(), cfg, cmd.OutOrStdout())
				b.end()
				return err
			}
			m, err = backup.CreateFile(cmd.Context(), cfg, out)
			b.end()
			if err != nil {
				return err
			}
			if lock.plain {
				fmt.Fprintln(cmd.ErrOrStderr(), "steward: the archive is NOT encrypted and holds all keys of this installation")
			}
			return p.say(m.Header, "%s: %d files, %s; %d devices, %d ledger events, as of %s", out, m.Header.Files,
				formatBytes(float64(m.Header.Bytes)), m.Devices, m.Events, m.Header.Created.Format("2006-01-02 15:04:05 MST"))
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data", os.Getenv("STEWARD_DATA"), "the server's data directory")
	f.StringVar(&out, "out", "", "file to write; it must not exist")
	f.BoolVar(&cfg.WithoutMetrics, "without-metrics", false, "leave the time series out")
	f.BoolVar(&cfg.WithoutArtifacts, "without-artifacts", false, "leave release files out, when the server keeps them in a bucket")
	lock.flags(cmd)
	cmd.AddCommand(a.backupVerifyCommand())
	return cmd
}

func (a *app) backupVerifyCommand() *cobra.Command {
	cfg := backup.RestoreConfig{Version: a.version}
	var key backupKey
	var scratch string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Read a whole archive and compare it with its manifest; with --rehearse, restore it for a try",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := a.printer(cmd)
			if err != nil {
				return err
			}
			do := backup.Verify
			if scratch != "" {
				do = func(ctx context.Context, cfg backup.RestoreConfig, r io.Reader) (backup.Result, error) {
					return backup.Rehearse(ctx, cfg, r, scratch)
				}
			}
			got, err := a.readArchive(cmd, argv[0], &key, cfg, do)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("%s is whole: %d files, %s; %d devices, %d ledger events, as of %s", argv[0], got.Header.Files,
				formatBytes(float64(got.Header.Bytes)), got.Devices, got.Events, got.Header.Created.Format("2006-01-02 15:04:05 MST"))
			if scratch != "" {
				text += "\nit restores, and its ledger verifies: root " + got.Root
			}
			if !got.Encrypted {
				text += "\nit is NOT encrypted"
			}
			return p.say(summary(got), "%s", text)
		},
	}
	cmd.Flags().StringVar(&scratch, "rehearse", "", "`directory` with room for a restore, which is removed again")
	cmd.Flags().StringVar(&cfg.MasterKeyFile, "master-key-file", os.Getenv("STEWARD_MASTER_KEY_FILE"), "of the server, when its keys are sealed in the database")
	key.flags(cmd)
	return cmd
}

// summary is a result without the list of files.
func summary(r backup.Result) backup.Result {
	r.Entries = nil
	return r
}

// readArchive opens a file, or standard input for "-", shows a bar over it, and reads it with do.
func (a *app) readArchive(cmd *cobra.Command, name string, key *backupKey, cfg backup.RestoreConfig,
	do func(context.Context, backup.RestoreConfig, io.Reader) (backup.Result, error)) (out backup.Result, err error) {
	if cfg.Identities, err = key.identities(cmd); err != nil {
		return out, err
	}
	var in io.Reader = cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return out, err
		}
		defer f.Close() //nolint:errcheck // read only
		in = f
	}
	b := newBar(cmd.ErrOrStderr())
	cfg.Progress = b.show
	out, err = do(cmd.Context(), cfg, in)
	b.end()
	if errors.Is(err, backup.ErrNeedsKey) {
		return out, usagef("%v: give --passphrase-file or --identity-file, or run it on a terminal", err)
	}
	return out, err
}

// backupLock says for whom an archive is encrypted.
type backupLock struct {
	to, files      []string
	passphraseFile string
	plain          bool
}

func (l *backupLock) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&l.to, "recipient", nil, "encrypt for this age recipient (age1…; repeat)")
	f.StringSliceVar(&l.files, "recipients-file", nil, "encrypt for the recipients in this file, one per line (repeat)")
	f.StringVar(&l.passphraseFile, "passphrase-file", os.Getenv("STEWARD_BACKUP_PASSPHRASE_FILE"), "encrypt with the passphrase in the first line of this file (or STEWARD_BACKUP_PASSPHRASE_FILE)")
	f.BoolVar(&l.plain, "plain", false, "don't encrypt: whoever reads the archive has all keys")
}

func (l *backupLock) recipients(cmd *cobra.Command) ([]age.Recipient, error) {
	named := len(l.to)+len(l.files) > 0
	if l.plain && (named || l.passphraseFile != "") || named && l.passphraseFile != "" {
		return nil, usagef("--plain, --passphrase-file and recipients exclude each other")
	}
	switch {
	case l.plain:
		return nil, nil
	case named:
		return l.named()
	}
	pass, err := l.passphrase(cmd)
	if err != nil {
		return nil, err
	}
	r, err := age.NewScryptRecipient(pass)
	if err != nil {
		return nil, usagef("the passphrase: %v", err)
	}
	return []age.Recipient{r}, nil
}

func (l *backupLock) named() (out []age.Recipient, err error) {
	texts := l.to
	for _, file := range l.files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(data))
	}
	for _, text := range texts {
		some, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, usagef("recipient %.80q: %v; want age1…, as `age-keygen` prints it", text, err)
		}
		out = append(out, some...)
	}
	return out, nil
}

// passphrase reads the file or asks twice.
func (l *backupLock) passphrase(cmd *cobra.Command) (string, error) {
	if l.passphraseFile != "" {
		return passphraseOf(l.passphraseFile)
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", usagef("the archive holds keys: give --recipient, --recipients-file or --passphrase-file to encrypt it, or --plain")
	}
	first, err := ask(cmd, in, "passphrase of the archive: ")
	if err != nil {
		return "", err
	}
	again, err := ask(cmd, in, "once more: ")
	if err != nil {
		return "", err
	}
	if first != again {
		return "", usagef("the two passphrases differ")
	}
	return first, nil
}

func passphraseOf(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimRight(line, "\r"); line == "" {
		return "", usagef("%s has no passphrase in its first line", file)
	}
	return line, nil
}

func ask(cmd *cobra.Command, in *os.File, question string) (string, error) {
	fmt.Fprint(cmd.ErrOrStderr(), question)
	pass, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(cmd.ErrOrStderr())
	if err == nil && len(pass) == 0 {
		err = usagef("the passphrase is empty")
	}
	return string(pass), err
}

// backupKey is what an archive opens with.
type backupKey struct {
	files          []string
	passphraseFile string
}

func (k *backupKey) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&k.files, "identity-file", nil, "file with age identities (AGE-SECRET-KEY-1…; repeat)")
	f.StringVar(&k.passphraseFile, "passphrase-file", os.Getenv("STEWARD_BACKUP_PASSPHRASE_FILE"), "file with the passphrase in its first line (or STEWARD_BACKUP_PASSPHRASE_FILE)")
}

func (k *backupKey) identities(cmd *cobra.Command) (out []age.Identity, err error) {
	for _, file := range k.files {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		some, err := age.ParseIdentities(f)
		_ = f.Close()
		if err != nil {
			return nil, usagef("%s: %v", filepath.Base(file), err) // never quote it
		}
		out = append(out, some...)
	}
	if k.passphraseFile != "" {
		pass, err := passphraseOf(k.passphraseFile)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(pass)
		if err != nil {
			return nil, usagef("the passphrase: %v", err)
		}
		return append(out, id), nil
	}
	if len(out) == 0 {
		out = append(out, &askingIdentity{cmd: cmd})
	}
	return out, nil
}

// askingIdentity asks for a passphrase once an archive turns out to need one.
type askingIdentity struct{ cmd *cobra.Command }

// Unwrap implements age.Identity.
func (i *askingIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	in, ok := i.cmd.InOrStdin().(*os.File)
	if len(stanzas) != 1 || stanzas[0].Type != "scrypt" {
		return nil, fmt.Errorf("%w: it is encrypted for recipients", backup.ErrNeedsKey)
	}
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, backup.ErrNeedsKey
	}
	pass, err := ask(i.cmd, in, "passphrase of the archive: ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backup.ErrNeedsKey, err)
	}
	id, err := age.NewScryptIdentity(pass)
	if err != nil {
		return nil, err
	}
	return id.Unwrap(stanzas)
}
