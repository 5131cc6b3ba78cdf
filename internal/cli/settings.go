package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Settings say which server to speak to and as whom.
type Settings struct {
	URL    string `json:"url"`
	Token  string `json:"token"`
	CA     string `json:"ca,omitempty"`     // PEM, when the console's certificate is not publicly trusted
	Tenant string `json:"tenant,omitempty"` // only for administrators of the installation
}

// Bootstrap is the content of DIR/bootstrap.json, which a server writes once it serves (mode 0600).
type Bootstrap struct {
	Console    string         `json:"console"`    // URL of console and API
	Link       string         `json:"link"`       // URL that devices use
	CA         string         `json:"ca"`         // PEM roots of the link's and the console's TLS certificates
	Admin      BootstrapAdmin `json:"admin"`      // the first administrator
	Token      string         `json:"token"`      // API token of the first administrator
	LedgerKey  string         `json:"ledger_key"` // verifier key of the ledger's tree head
	IssuerKey  string         `json:"issuer_key"` // PEM public key that signs disposal certificates
	ServerPID  int            `json:"server_pid"`
	Version    string         `json:"version"`
	DataFormat int            `json:"data_format"` // of this file
}

// BootstrapAdmin are the credentials of the first administrator. Password is empty once it was changed.
type BootstrapAdmin struct {
	Name     string `json:"name"`
	Password string `json:"password,omitempty"`
}

// ReadBootstrap reads DIR/bootstrap.json.
func ReadBootstrap(dir string) (Bootstrap, error) {
	var b Bootstrap
	data, err := os.ReadFile(filepath.Join(dir, "bootstrap.json"))
	if err != nil {
		return b, fmt.Errorf("read the server's bootstrap file: %w", err)
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return b, fmt.Errorf("read the server's bootstrap file: %w", err)
	}
	return b, nil
}

// flags that every command has; they win over the environment, which wins over the settings file.
type globalFlags struct {
	url, token, tenant, data, output string
}

func settingsPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "steward", "settings.json"), nil
}

// settings joins flags, environment and the settings file.
func (g *globalFlags) settings() (Settings, error) {
	s, err := savedSettings()
	if err != nil {
		return s, err
	}
	if dir := first(g.data, os.Getenv("STEWARD_DATA")); dir != "" {
		b, err := ReadBootstrap(dir)
		if err != nil {
			return s, err
		}
		s = Settings{URL: b.Console, Token: b.Token, CA: b.CA}
	}
	s.URL = first(g.url, os.Getenv("STEWARD_URL"), s.URL)
	s.Token = first(g.token, os.Getenv("STEWARD_TOKEN"), s.Token)
	s.Tenant = first(g.tenant, os.Getenv("STEWARD_TENANT"), s.Tenant)
	return s, nil
}

func savedSettings() (Settings, error) {
	var s Settings
	path, err := settingsPath()
	if err != nil {
		return s, nil // no home directory: flags and environment must do
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, fmt.Errorf("read settings: %w", err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("read settings %s: %w", path, err)
	}
	return s, nil
}

func saveSettings(s Settings) (string, error) {
	path, err := settingsPath()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, append(data, '\n'), 0o600)
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
