package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"steward/internal/client"
	"steward/internal/release/push"
	"steward/internal/release/signing"
)

func (a *app) releaseCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "release", Short: "Release keys and releases: what can be installed"}
	cmd.AddCommand(a.releaseKeysCommand(), a.releasePushCommand(), a.releaseStatusCommand(), a.releaseSignCommand(), a.releaseRotateCommand())
	return cmd
}

func (a *app) releaseKeysCommand() *cobra.Command {
	var o signing.Options
	var passphraseFile string
	cmd := &cobra.Command{
		Use:   "init-keys DIR",
		Short: "Make the offline keys of the tenant's releases and hand the first root to the server",
		Long: `init-keys makes the root and targets keys in a new directory on this machine, signs the first root.json,
which names the server's online keys, and hands it over. Do it before the first device enrolls: devices
pin this root. Keep the directory offline; who has the targets keys can release, who has the root keys
can replace all others.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if o.Passphrase, err = readPassphrase(cmd, passphraseFile); err != nil {
				return err
			}
			if err := push.InitKeys(cmd.Context(), c, argv[0], o); err != nil {
				return err
			}
			return p.say(client.Object{"keys": argv[0]}, "keys made in %s and the root handed to the server; keep the directory offline", argv[0])
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.RootKeys, "root-keys", 1, "how many root keys to make")
	f.IntVar(&o.RootThreshold, "root-threshold", 1, "how many of them must sign")
	f.IntVar(&o.TargetsKeys, "targets-keys", 1, "how many targets keys to make")
	f.IntVar(&o.TargetsThreshold, "targets-threshold", 1, "how many of them must sign")
	f.StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase that encrypts the keys ('-' asks)")
	return cmd
}

// readPassphrase reads a file's first line, or asks on the terminal; an empty name gives none.
func readPassphrase(cmd *cobra.Command, file string) ([]byte, error) {
	switch file {
	case "":
		return nil, nil
	case "-":
		fmt.Fprint(cmd.ErrOrStderr(), "passphrase: ")
		pass, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return pass, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return []byte(strings.TrimRight(line, "\r")), nil
}

func (a *app) releasePushCommand() *cobra.Command {
	var file, keys, passphraseFile string
	cmd := &cobra.Command{
		Use:   "push -f release.yaml [--keys DIR]",
		Short: "Pack, upload, sign and publish a release",
		Long: `push makes a release of what a file describes:

  name: edge-app
  version: 1.4.0
  notes: Fixes the modem watchdog
  components:
    - name: app
      dir: ./build/app          # packed; or archive: ./app.tar.zst
      architectures: [amd64, arm64]
      commands:
        pre:    [{argv: [./bin/check]}]
        post:   [{argv: [systemctl, restart, app]}]
        health: [{argv: [./bin/healthy]}]
        health_seconds: 60

Commands run without a shell in the directory of the new version. They are signed with the files.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := readReleaseSpec(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			pass, err := readPassphrase(cmd, passphraseFile)
			if err != nil {
				return err
			}
			bar := newBar(cmd.ErrOrStderr())
			pusher := push.Pusher{API: c, Keys: keys, Passphrase: pass, Base: filepath.Dir(file), Progress: bar.show}
			manifest, err := pusher.Push(cmd.Context(), spec)
			bar.end()
			if err != nil {
				return err
			}
			return p.say(manifest, "release %s %s published", manifest.Name, manifest.Version)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "release description in YAML or JSON (required)")
	f.StringVar(&keys, "keys", os.Getenv("STEWARD_KEYS"), "directory with the offline keys (or STEWARD_KEYS); without it the server must hold them")
	f.StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase of the keys ('-' asks)")
	return cmd
}

func readReleaseSpec(stdin io.Reader, file string) (push.Spec, error) {
	var spec push.Spec
	if file == "" {
		return spec, usagef("give the release's description with -f FILE")
	}
	var data []byte
	var err error
	if file == "-" {
		data, err = io.ReadAll(io.LimitReader(stdin, maxManifestBytes))
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return spec, err
	}
	if err := yaml.UnmarshalStrict(data, &spec); err != nil {
		return spec, usagef("%s: %v", file, err)
	}
	return spec, nil
}

func (a *app) releaseStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keys",
		Short: "Show the release repository: roles, versions, expiries, who holds the keys",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var repo client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: "/release-repository"}, &repo); err != nil {
				return err
			}
			return p.value(repo)
		},
	}
}

func (a *app) releaseSignCommand() *cobra.Command {
	var keys, passphraseFile string
	cmd := &cobra.Command{
		Use:   "sign FILE --keys DIR",
		Short: "Add this directory's signatures to a half-signed root.json or targets.json, offline",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			pass, err := readPassphrase(cmd, passphraseFile)
			if err != nil {
				return err
			}
			ceremony, err := signing.Open(keys, signing.Options{Passphrase: pass})
			if err != nil {
				return err
			}
			data, err := os.ReadFile(argv[0])
			if err != nil {
				return err
			}
			signed, err := ceremony.AddSignatures(data)
			if err != nil {
				return err
			}
			return os.WriteFile(argv[0], signed, 0o644)
		},
	}
	cmd.Flags().StringVar(&keys, "keys", os.Getenv("STEWARD_KEYS"), "directory with the offline keys")
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase of the keys ('-' asks)")
	return cmd
}

func (a *app) releaseRotateCommand() *cobra.Command {
	var keys, passphraseFile string
	cmd := &cobra.Command{
		Use:   "rotate --keys DIR",
		Short: "Sign the next root with a new expiry and the server's present online keys, and hand it over",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			pass, err := readPassphrase(cmd, passphraseFile)
			if err != nil {
				return err
			}
			ceremony, err := signing.Open(keys, signing.Options{Passphrase: pass})
			if err != nil {
				return err
			}
			var repo struct {
				OnlineKeys signing.OnlineKeys `json:"online_keys"`
			}
			if err := c.Do(cmd.Context(), client.Call{Path: "/release-repository"}, &repo); err != nil {
				return err
			}
			root, err := ceremony.NextRoot(signing.Rotation{Online: repo.OnlineKeys})
			if err != nil {
				return err
			}
			if err := push.SetRoot(cmd.Context(), c, root); err != nil {
				return err
			}
			return p.say(client.Object{"rotated": true}, "the next root is signed and handed over")
		},
	}
	cmd.Flags().StringVar(&keys, "keys", os.Getenv("STEWARD_KEYS"), "directory with the offline keys")
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase of the keys ('-' asks)")
	return cmd
}

func (a *app) updateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "update", Short: "Assign releases to devices and follow them"}
	cmd.AddCommand(a.updateAssignCommand(), a.updateStatusCommand(), a.updateDevicesCommand(),
		a.updateChangeCommand("cancel", "reason", "Stop an assignment; devices that haven't committed go back to what they should have had"),
		a.updateChangeCommand("retry", "cause", "Try again on the devices that failed or rolled back"))
	return cmd
}

func (a *app) updateAssignCommand() *cobra.Command {
	var selector, note string
	cmd := &cobra.Command{
		Use:   "assign NAME VERSION --selector SELECTOR",
		Short: "Assign a release to the devices that a selector matches, now and later",
		Args:  args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			body := client.Object{"name": argv[0], "version": argv[1], "selector": selector, "note": note}
			var preview client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/assignments/preview", Body: body}, &preview); err != nil {
				return err
			}
			if !a.yes {
				if err := (printer{w: cmd.ErrOrStderr(), format: "yaml", now: time.Now}).value(preview); err != nil {
					return err
				}
				if err := a.confirm(cmd, fmt.Sprintf("Assign %s %s to these devices?", argv[0], argv[1])); err != nil {
					return err
				}
			}
			var made client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/assignments", Body: body}, &made); err != nil {
				return err
			}
			return p.say(made, "assignment %v made; follow it with: steward update status %v --watch", made["id"], made["id"])
		},
	}
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "label selector; empty means every device of your scope")
	cmd.Flags().StringVar(&note, "note", "", "why, for the ledger")
	return cmd
}

// updateDevicesCommand lists the devices of an assignment.
func (a *app) updateDevicesCommand() *cobra.Command {
	var state, cause string
	cmd := &cobra.Command{
		Use: "devices ASSIGNMENT", Short: "List the devices of an assignment, with state and first cause", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			query := url.Values{}
			for name, value := range map[string]string{"state": state, "cause": cause} {
				if value != "" {
					query.Set(name, value)
				}
			}
			items, err := c.All(cmd.Context(), "/assignments/"+escapePath(argv[0])+"/devices", query, 0)
			if err != nil {
				return err
			}
			return p.list(items, updateColumns)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "only those in this state")
	cmd.Flags().StringVar(&cause, "cause", "", "only those that failed for this cause")
	return cmd
}

// updateChangeCommand is a verb on an assignment; field is what the API lets it say besides.
func (a *app) updateChangeCommand(verb, field, short string) *cobra.Command {
	var value string
	cmd := &cobra.Command{
		Use: verb + " ASSIGNMENT", Short: short, Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if err := a.confirm(cmd, fmt.Sprintf("%s assignment %s?", verb, argv[0])); err != nil {
				return err
			}
			body := client.Object{}
			if value != "" {
				body[field] = value
			}
			var out client.Object
			err = c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/assignments/" + escapePath(argv[0]) + "/" + verb, Body: body}, &out)
			if err != nil {
				return err
			}
			if n, ok := out["devices"]; ok {
				return p.say(out, "%s: %v devices", verb, n)
			}
			return p.say(out, "%s: done", verb)
		},
	}
	usage := "why, for the ledger"
	if field == "cause" {
		usage = "only devices that failed for this cause"
	}
	cmd.Flags().StringVar(&value, field, "", usage)
	return cmd
}

func (a *app) updateStatusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use: "status ASSIGNMENT", Short: "Show how far an assignment is, with failures by cause", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			for {
				var out client.Object
				if err := c.Do(cmd.Context(), client.Call{Path: "/assignments/" + escapePath(argv[0])}, &out); err != nil {
					return err
				}
				if !watch {
					return p.value(out)
				}
				done, line := progressLine(out)
				fmt.Fprintln(cmd.OutOrStdout(), line)
				if done {
					return nil
				}
				select {
				case <-time.After(2 * time.Second):
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "print a line every two seconds until every device has ended")
	return cmd
}

// progressLine sums up an assignment's counts; done when no device is still on its way.
func progressLine(assignment client.Object) (done bool, line string) {
	counts, _ := assignment["states"].(map[string]any)
	var parts []string
	var open float64
	for _, state := range []string{"pending", "downloading", "downloaded", "installed", "healthy", "committed", "rolled_back", "failed"} {
		n, _ := counts[state].(float64)
		if n == 0 {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %.0f", state, n))
		if state != "committed" && state != "rolled_back" && state != "failed" {
			open += n
		}
	}
	return open == 0, first(strings.Join(parts, " · "), "no device")
}
