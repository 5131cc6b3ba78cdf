package client

import (
	"encoding/json"
	"fmt"
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
