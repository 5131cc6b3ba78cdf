package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"steward/internal/client"
)

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
func (g *globalFlags) settings() (client.Settings, error) {
	s, err := savedSettings()
	if err != nil {
		return s, err
	}
	if dir := first(g.data, os.Getenv("STEWARD_DATA")); dir != "" {
		b, err := client.ReadBootstrap(dir)
		if err != nil {
			return s, err
		}
		s = client.Settings{URL: b.Console, Token: b.Token, CA: b.CA}
	}
	s.URL = first(g.url, os.Getenv("STEWARD_URL"), s.URL)
	s.Token = first(g.token, tokenFromEnv(), s.Token)
	s.Tenant = first(g.tenant, os.Getenv("STEWARD_TENANT"), s.Tenant)
	return s, nil
}

// tokenFromEnv leaves out an enrollment token, which the agent reads from the same variable.
func tokenFromEnv() string {
	token := os.Getenv("STEWARD_TOKEN")
	if strings.HasPrefix(token, "stw1.") {
		return ""
	}
	return token
}

func savedSettings() (client.Settings, error) {
	var s client.Settings
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

func saveSettings(s client.Settings) (string, error) {
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
