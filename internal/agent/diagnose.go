package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"steward/internal/agent/disposal"
	"steward/internal/agent/link"
	"steward/internal/agent/provisioning"
	"steward/internal/wire"
)

// Finding is one check of Diagnose.
type Finding struct {
	Check  string `json:"check"` // state, address, dns, tcp, clock, tls, token, certificate, server, mqtt
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"` // what to do
}

// diagnosis goes from the bottom up and stops where the rest would only repeat the cause.
type diagnosis struct {
	cfg      Config
	findings []Finding
	base     *url.URL
	identity *provisioning.Identity
	trust    *wire.Trust
}

func (d *diagnosis) good(check, format string, args ...any) bool {
	d.findings = append(d.findings, Finding{Check: check, OK: true, Detail: fmt.Sprintf(format, args...)})
	return true
}

func (d *diagnosis) bad(check, hint, format string, args ...any) bool {
	d.findings = append(d.findings, Finding{Check: check, Detail: fmt.Sprintf(format, args...), Hint: hint})
	return false
}

// Diagnose names what keeps the device from its server: state directory, address, DNS, TCP, clock, TLS
// and pin, token, certificate, the server's own refusal, MQTT. It changes nothing and needs no lock. The
// Config's Server, Token and StateDir are enough.
func Diagnose(ctx context.Context, cfg Config) []Finding {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d := &diagnosis{cfg: cfg}
	for _, check := range []func(context.Context) bool{d.state, d.address, d.reach, d.secure, d.token, d.certificate, d.server, d.mqtt} {
		if !check(ctx) {
			break
		}
	}
	return d.findings
}

func (d *diagnosis) state(context.Context) bool {
	dir := d.cfg.StateDir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return d.good("state", "%s does not exist yet; it is made at the first start", dir)
	case err != nil:
		return d.bad("state", "run as the user that the agent runs as", "%s can't be read: %v", dir, err)
	case !info.IsDir():
		return d.bad("state", "name a directory with --state", "%s is no directory", dir)
	}
	if stone, err := disposal.ReadTombstone(dir); err != nil || stone != nil {
		if err != nil {
			return d.bad("state", "run as the user that the agent runs as", "%v", err)
		}
		return d.bad("state", "a device that comes back needs an empty state directory and a new token", "the device was decommissioned by disposal order %s", stone.Order)
	}
	if d.identity, err = provisioning.ReadIdentity(dir); err != nil {
		return d.bad("state", "restore the file from a backup, or remove it and enroll with a new token", "the identity can't be read: %v", err)
	}
	if d.trust, err = provisioning.ReadTrust(dir); err != nil {
		return d.bad("state", "remove the file and enroll with a new token", "the trust document can't be read: %v", err)
	}
	return d.good("state", "%s is readable", dir)
}

func (d *diagnosis) address(context.Context) bool {
	server := d.cfg.Server
	if server == "" {
		if s, err := ReadStatus(d.cfg.StateDir); err == nil {
			server = s.Server
		}
	}
	if server == "" {
		return d.bad("address", "give --server https://host:port", "no server is known")
	}
	base, err := url.Parse(server)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return d.bad("address", "want https://host:port", "%q is no address of a server", server)
	}
	d.base = base
	return d.good("address", "%s", server)
}

func (d *diagnosis) reach(ctx context.Context) bool {
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: d.base}); err != nil {
		return d.bad("address", "correct HTTPS_PROXY", "the proxy setting is wrong: %v", err)
	} else if proxy != nil {
		return d.good("tcp", "not tried: the link goes through the proxy %s", proxy.Host)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	host, port := d.base.Hostname(), d.base.Port()
	if port == "" {
		port = "443"
	}
	if net.ParseIP(host) == nil {
		addresses, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return d.bad("dns", "check the name, /etc/resolv.conf and the name server", "%s does not resolve: %v", host, err)
		}
		d.good("dns", "%s is %s", host, addresses[0])
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return d.bad("tcp", "check that the server runs, its port, and firewalls between", "no connection: %v", err)
	}
	_ = conn.Close()
	return d.good("tcp", "port %s answers", port)
}

// secure looks at the server's certificate without believing it, then judges it by the pinned roots
// and by the clock.
func (d *diagnosis) secure(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	port := d.base.Port()
	if port == "" {
		port = "443"
	}
	// The certificate is only looked at here; nothing is sent.
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: d.base.Hostname()}}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(d.base.Hostname(), port))
	if err != nil {
		return d.bad("tls", "is it the link's port, and not the console's or another program's?", "no TLS: %v", err)
	}
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	_ = conn.Close()
	leaf, now := chain[0], d.cfg.Now()
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		d.bad("clock", "set the clock (NTP); the agent goes by the server's time after its first contact", "the clock says %s, the server's certificate holds from %s to %s",
			now.UTC().Format(time.RFC3339), leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	} else {
		d.good("clock", "%s fits the server's certificate", now.UTC().Format(time.RFC3339))
	}
	if d.trust == nil {
		return d.good("tls", "the server speaks TLS; it is not known yet whether it is the right one")
	}
	return d.pinned(chain)
}

func (d *diagnosis) pinned(chain []*x509.Certificate) bool {
	roots, err := link.RootsOf(*d.trust)
	if err != nil {
		return d.bad("tls", "enroll with a new token", "the trust document is damaged: %v", err)
	}
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), DNSName: d.base.Hostname(), CurrentTime: chain[0].NotBefore.Add(time.Second)}
	for _, root := range roots {
		opts.Roots.AddCert(root)
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err = chain[0].Verify(opts)
	var name x509.HostnameError
	switch {
	case errors.As(err, &name):
		return d.bad("tls", "use a name or address that the server's certificate holds, or add this one to the server's configuration", "the certificate is not for %s: %v", d.base.Hostname(), err)
	case err != nil:
		return d.bad("tls", "is this another server, or something between that breaks TLS open? After a reinstallation of the server a new token is needed", "the server is not the one that the token named: %v", err)
	}
	return d.good("tls", "the server is the pinned one")
}

func (d *diagnosis) token(ctx context.Context) bool {
	if d.identity != nil && d.identity.Certificate != nil {
		return true // it has served its turn
	}
	if d.cfg.Token == "" {
		return d.bad("token", "start the agent with --token", "the device is not enrolled and no token was given here")
	}
	token, err := wire.ParseEnrollmentToken(d.cfg.Token)
	if err != nil {
		return d.bad("token", "copy the whole token", "%v", err)
	}
	client, err := link.New(link.Config{Server: d.base.String(), Version: d.cfg.Version})
	if err != nil {
		return d.bad("address", "", "%v", err)
	}
	if _, _, _, err := client.Trust(ctx, token.Pin); err != nil {
		return d.bad("token", "the token is of another server, or something between breaks TLS open", "%v", err)
	}
	return d.good("token", "the token names this server; whether it is still valid shows at enrollment")
}

func (d *diagnosis) certificate(context.Context) bool {
	if d.identity == nil || d.identity.Certificate == nil {
		return false // nothing to ask the server with
	}
	cert, now := d.identity.Certificate, d.cfg.Now()
	if now.After(cert.NotAfter) {
		return d.bad("certificate", "give a new token with --token", "device %s: the certificate ended at %s", d.identity.Device, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return d.good("certificate", "device %s, valid to %s", d.identity.Device, cert.NotAfter.UTC().Format(time.RFC3339))
}

// server asks as the device, which the server notes as a contact.
func (d *diagnosis) server(ctx context.Context) bool {
	var seen time.Time
	client, err := link.New(link.Config{Server: d.base.String(), Version: d.cfg.Version, Now: d.cfg.Now, Seen: func(at time.Time) { seen = at }})
	if err != nil {
		return d.bad("address", "", "%v", err)
	}
	defer client.Close()
	if err := client.UseTrust(*d.trust); err != nil {
		return d.bad("state", "enroll with a new token", "%v", err)
	}
	client.UseIdentity(d.identity.TLS)
	_, err = client.Desired(ctx, link.Whole, 0)
	if offset := d.cfg.Now().Sub(seen); !seen.IsZero() && offset.Abs() > clockTolerance {
		d.bad("clock", "set the clock (NTP)", "the device's clock is %s the server's", aheadOrBehind(offset))
	}
	if err != nil {
		return d.bad("server", hintFor(link.CodeOf(err)), "%v", err)
	}
	return d.good("server", "the server knows this device and answers")
}

// mqtt tries to connect beside the agent, whose connection stays. Where HTTPS will do it is no fault that
// there is no MQTT.
func (d *diagnosis) mqtt(ctx context.Context) bool {
	if d.cfg.Link == "" {
		if s, err := ReadStatus(d.cfg.StateDir); err == nil {
			d.cfg.Link = s.LinkMode
		}
	}
	if d.cfg.Link == link.ModeHTTPS {
		return d.good("mqtt", "not tried: HTTPS was chosen (--link https)")
	}
	client, err := link.New(link.Config{Server: d.base.String(), Version: d.cfg.Version, Now: d.cfg.Now})
	if err != nil {
		return d.bad("address", "", "%v", err)
	}
	defer client.Close()
	if err := client.UseTrust(*d.trust); err != nil {
		return d.bad("state", "enroll with a new token", "%v", err)
	}
	client.UseIdentity(d.identity.TLS)
	via, err := client.Try(ctx)
	switch {
	case err != nil && d.cfg.Link == link.ModeMQTT:
		return d.bad("mqtt", "is something between that lets HTTPS through only? --link auto falls back to it", "no MQTT: %v", err)
	case err != nil:
		return d.good("mqtt", "not to be had, so messages travel by HTTPS: %v", err)
	case via == link.ViaWebSocket:
		return d.good("mqtt", "works in a WebSocket only")
	}
	return d.good("mqtt", "works on the server's port")
}

func hintFor(code string) string {
	switch code {
	case wire.CodeRevoked, wire.CodeExpired, wire.CodeUnknownDevice:
		return "issue a new enrollment token and start the agent with --token"
	case wire.CodeSuperseded:
		return "a copy of this device has renewed the certificate, or the state directory was restored from an old backup"
	case wire.CodeDecommissioned:
		return "the device was retired or disposed of: remove the agent"
	case wire.CodeQuarantined:
		return "an operator has to release the device from quarantine"
	}
	return "see the server's log"
}
