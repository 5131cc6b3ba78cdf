package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"steward/internal/client"
	"steward/internal/disposal"
	"steward/internal/server"
	"steward/internal/wire"
)

func (l *life) retire(ctx context.Context) (string, error) {
	if _, err := l.get(ctx, "/devices/"+l.device+"/disposal"); err != nil {
		return "", err
	}
	if _, err := l.send(ctx, http.MethodPost, "/devices/"+l.device+"/retire", client.Object{"reason": "end of the demo"}); err != nil {
		return "", err
	}
	return "retired after a preview", l.stage(ctx, "retired", 5*time.Second)
}

func (l *life) dispose(ctx context.Context) (string, error) {
	identity, err := os.ReadFile(filepath.Join(l.agent.state, "identity.pem"))
	if err != nil {
		return "", fmt.Errorf("copy the identity, to try it afterwards: %w", err)
	}
	l.identity = identity
	body := client.Object{"reason": "end of the demo", "confirm": l.serial}
	if _, err := l.send(ctx, http.MethodPost, "/devices/"+l.device+"/disposal/order", body); err != nil {
		return "", err
	}
	if err := l.stage(ctx, "disposed", 30*time.Second); err != nil {
		return "", fmt.Errorf("%w: %s", err, l.agentLog())
	}
	err = until(ctx, 10*time.Second, "the agent has destroyed its key", func() (bool, error) {
		_, err := os.Stat(filepath.Join(l.agent.state, "identity.pem"))
		return errors.Is(err, os.ErrNotExist), nil
	})
	if err != nil {
		return "", err
	}
	if _, err := l.running(); err == nil {
		return "", errors.New("the released files are still there")
	}
	return "the agent destroyed its data, signed the statement, then destroyed its key", nil
}

// refused tries the certificate that the device had, with the copy of its key, over a new connection.
func (l *life) refused(ctx context.Context) (string, error) {
	pair, err := tls.X509KeyPair(l.identity, l.identity)
	if err != nil {
		return "", err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(l.node.boot.CA)) {
		return "", errors.New("the bootstrap file has no CA")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.node.boot.Link+wire.PathDesired, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return "", fmt.Errorf("want a readable refusal, got %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	var p wire.Problem
	if err := json.Unmarshal(data, &p); err != nil {
		return "", fmt.Errorf("the refusal is no problem document: %s", data)
	}
	if resp.StatusCode < 400 || (p.Code != wire.CodeRevoked && p.Code != wire.CodeDecommissioned) {
		return "", fmt.Errorf("the old certificate got %d %s", resp.StatusCode, p.Code)
	}
	return fmt.Sprintf("a copy of the old key and certificate gets %d %s", resp.StatusCode, p.Code), nil
}

func (l *life) verifyCertificate(ctx context.Context) (string, error) {
	err := until(ctx, 10*time.Second, "the disposal certificate is made", func() (bool, error) {
		err := l.node.api.Do(ctx, client.Call{Path: "/devices/" + l.device + "/disposal/certificate"}, &l.certificate)
		var p *client.Problem
		if errors.As(err, &p) && p.Status == http.StatusServiceUnavailable {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return "", err
	}
	opts := disposal.VerifyOptions{IssuerKey: l.node.boot.IssuerKey, LedgerKey: l.node.boot.LedgerKey}
	report, err := disposal.VerifyCertificate(l.certificate, opts)
	if err != nil {
		return "", err
	}
	if report.Verdict != disposal.VerdictValid {
		return "", fmt.Errorf("verdict %q", report.Verdict)
	}
	forged := bytes.Replace(l.certificate, []byte(`"sig":"`), []byte(`"sig":"AAAA`), 1)
	if _, err := disposal.VerifyCertificate(forged, opts); err == nil {
		return "", errors.New("a forged certificate verifies too")
	}
	return fmt.Sprintf("%d checks offline with pinned keys: %s; a forged copy is refused", len(report.Checks), report.Verdict), nil
}

// verifyLedger recomputes the ledger beside the running server and holds it against the head of the
// beginning, then checks that each stage of the life is an event.
func (l *life) verifyLedger(ctx context.Context) (string, error) {
	head, err := server.VerifyLedger(ctx, server.Config{DataDir: l.data}, l.checkpoint)
	if err != nil {
		return "", err
	}
	events, err := l.node.api.All(ctx, "/events", map[string][]string{"device": {l.device}}, 0)
	if err != nil {
		return "", err
	}
	moved := map[string]bool{}
	for _, e := range events {
		data, _ := e["data"].(map[string]any)
		if to, ok := data["to"].(string); ok && e["kind"] == "device.moved" {
			moved[to] = true
		}
	}
	for _, stage := range []string{"received", "staged", "enrolled", "active", "retired", "disposed"} {
		if !moved[stage] {
			return "", fmt.Errorf("the ledger has no move to %s", stage)
		}
	}
	return fmt.Sprintf("tree of %d events recomputed and consistent with the head of the beginning; %d events in the passport", head.Size, len(events)), nil
}
