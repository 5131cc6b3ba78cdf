// Package agenttest is a small server that speaks the device contract, for tests of the agent's parts
// in which the real server can't take part: the layers forbid it. It is strict about what a device
// sends and can be told to misbehave. End to end tests with the real server are in stewardtest.
package agenttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// Secret of the server's one enrollment token.
const Secret = "abcdefghjkmnpqrstvwxyz0123"

// Serial that the token is bound to.
const Serial = "SN-1"

// DeviceID that the server gives.
const DeviceID = "dev-0123456789abcdef"

// Server is one tenant with one device.
type Server struct {
	URL   string
	Token string
	Trust wire.Trust

	t     testing.TB
	doors Doors
	http  *httptest.Server
	ca    *x509.Certificate
	caKey,
	envelopeKey crypto.Signer

	mu       sync.Mutex
	sections map[wire.Section]wire.Hash
	docs     map[wire.Hash][]byte
	epoch    int64
	woken    chan struct{}     // closed when the epoch changes
	issued   map[string]string // certificate number → state: issued, used, superseded, revoked
	usedKey  []byte            // public key that the token was used by
	reported map[wire.Section]wire.Hash
	reports  []wire.Report
	metrics  [][]byte
	disposal []byte
	calls    map[string]int
	streams  map[*endpoint]bool
	conns    map[net.Conn]bool
	epochs   map[int64]bool // that CONNECTs have named
	commands []wire.RemoteCommand
	results  map[string]wire.RemoteResult
	events   []wire.DeviceEvent

	// The following are read with the lock held; change them by Do.

	// Life of certificates.
	Life time.Duration
	// Now is the server's clock: Date, certificates, envelopes.
	Now func() time.Time
	// Refuse, when it returns a problem, is the answer. The path is without its last part.
	Refuse func(r *http.Request) *wire.Problem
	// Cut ends the connection after the request was handled, instead of its answer.
	Cut func(r *http.Request) bool
	// Envelope replaces the envelope that would be sent.
	Envelope func(d wire.Desired) []byte
	// LastKey is the public key of the certificate that was issued last.
	LastKey crypto.PublicKey
	// ManyKeys lets many agents use the one token and have certificates of their own.
	ManyKeys bool
	// Artifacts by hash.
	Artifacts map[string][]byte
	// Metadata of the TUF repository by name.
	Metadata map[string][]byte
	// Interval of report answers, in seconds.
	Interval int
	// Connack is the reason code of CONNACK, Properties its user properties.
	Connack    mqtt.Reason
	Properties []mqtt.UserProperty
	// Mute lets MQTT messages go unanswered, as on a half-open connection.
	Mute bool
	// HoldPush keeps envelopes from being pushed.
	HoldPush bool
}

// Doors are the ways in that a server has beside HTTPS.
type Doors struct{ MQTT, WebSocket bool }

// Start starts a server with all doors, which ends with the test.
func Start(t testing.TB) *Server { return StartWith(t, Doors{MQTT: true, WebSocket: true}) }

// StartWith starts a server with some doors only.
func StartWith(t testing.TB, doors Doors) *Server {
	s := &Server{
		t: t, sections: map[wire.Section]wire.Hash{}, docs: map[wire.Hash][]byte{}, epoch: 1, woken: make(chan struct{}),
		issued: map[string]string{}, reported: map[wire.Section]wire.Hash{}, calls: map[string]int{},
		streams: map[*endpoint]bool{}, conns: map[net.Conn]bool{}, epochs: map[int64]bool{}, results: map[string]wire.RemoteResult{}, doors: doors,
		Life: time.Hour, Now: time.Now, Artifacts: map[string][]byte{}, Metadata: map[string][]byte{}, Interval: 60,
	}
	s.makeAuthority()
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.http.EnableHTTP2 = true
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.http.TLS = &tls.Config{Certificates: []tls.Certificate{s.serverCertificate()}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.http.TLS.VerifyConnection = s.shaken
	s.http.Config.ConnState = s.watch
	if doors.MQTT {
		s.http.TLS.NextProtos = []string{"h2", "http/1.1", wire.ALPNMQTT}
		s.http.Config.Protocols = new(http.Protocols)
		s.http.Config.Protocols.SetHTTP1(true)
		s.http.Config.Protocols.SetHTTP2(true)
		s.http.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){
			wire.ALPNMQTT: func(_ *http.Server, conn *tls.Conn, _ http.Handler) {
				s.watch(conn, http.StateClosed) // it is no connection of HTTP
				state := conn.ConnectionState()
				s.stream(conn, &state)
			},
		}
	}
	s.http.StartTLS()
	t.Cleanup(func() {
		s.DropStreams()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	s.URL = s.http.URL
	s.Token = s.TokenFor(Secret)
	return s
}

// Do runs f with the lock held.
func (s *Server) Do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// TokenFor makes a token with the server's pin.
func (s *Server) TokenFor(secret string) string {
	return wire.EnrollmentToken{Secret: secret, Pin: wire.HashOf(s.trustBytes())}.String()
}

func (s *Server) trustBytes() []byte {
	raw, err := wire.Canonical(s.Trust)
	if err != nil {
		s.t.Fatal(err)
	}
	return raw
}

func (s *Server) makeAuthority() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: time.Now().Add(-240 * time.Hour), NotAfter: time.Now().Add(2400 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.ca, err = x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.caKey = key
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	s.envelopeKey = private
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		s.t.Fatal(err)
	}
	root := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	s.Trust = wire.Trust{
		Protocol: wire.Protocol, LinkRoots: []string{root}, DeviceRoots: []string{root},
		EnvelopeKeys: []string{string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))},
	}
}

func (s *Server) serverCertificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "link"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, key.Public(), s.caKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// SetDesired sets a section's document; nil removes the section.
func (s *Server) SetDesired(section wire.Section, doc any) {
	s.t.Helper()
	var body []byte
	if doc != nil {
		var err error
		if body, err = wire.Canonical(doc); err != nil {
			s.t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if doc == nil {
		delete(s.sections, section)
	} else {
		s.sections[section] = wire.HashOf(body)
		s.docs[wire.HashOf(body)] = body
	}
	s.epoch++
	close(s.woken)
	s.woken = make(chan struct{})
}

// Seal signs a desired state with the server's envelope key.
func (s *Server) Seal(d wire.Desired) []byte { return s.SealWith(d, s.envelopeKey) }

// SealWith signs a desired state with any key.
func (s *Server) SealWith(d wire.Desired, key crypto.Signer) []byte {
	envelope, err := wire.Seal(wire.DesiredType, d, key)
	if err != nil {
		s.t.Error(err)
	}
	return envelope
}

// Reported returns the body of a reported section, nil while it is not known.
func (s *Server) Reported(section wire.Section) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.docs[s.reported[section]]
}

// Reports returns the reports so far.
func (s *Server) Reports() []wire.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]wire.Report(nil), s.reports...)
}

// Metrics returns the bodies of the metrics so far.
func (s *Server) Metrics() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([][]byte(nil), s.metrics...)
}

// Disposal returns the statement's envelope, nil while there is none.
func (s *Server) Disposal() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disposal
}

// Calls counts requests by "METHOD /path/".
func (s *Server) Calls(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[key]
}

// Certificates counts those in the state: issued, used, superseded, revoked.
func (s *Server) Certificates(state string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, st := range s.issued {
		if st == state {
			n++
		}
	}
	return n
}

// RevokeAll revokes every certificate and lets the token be used again by another key.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.issued {
		s.issued[n] = "revoked"
	}
	s.usedKey = nil
}

// DropConnections cuts every connection.
func (s *Server) DropConnections() {
	s.DropStreams()
	s.http.CloseClientConnections()
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.calls[r.Method+" "+callKey(r.URL.Path)]++
	refuse, cut, now := s.Refuse, s.Cut, s.Now
	s.mu.Unlock()
	w.Header().Set("Date", now().UTC().Format(http.TimeFormat))
	if refuse != nil {
		if p := refuse(r); p != nil {
			writeProblem(w, *p)
			return
		}
	}
	if cut != nil && cut(r) {
		s.route(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}
	s.route(w, r)
}

func callKey(path string) string {
	if strings.HasPrefix(path, wire.PathCommands+"/") {
		return wire.PathCommands + "/"
	}
	for _, prefix := range []string{wire.PathTrust, wire.PathDocuments, wire.PathArtifacts, wire.PathTUF} {
		if strings.HasPrefix(path, prefix) {
			return prefix
		}
	}
	return path
}

func writeProblem(w http.ResponseWriter, p wire.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch {
	case path == wire.PathTrust+string(wire.HashOf(s.trustBytes())):
		_, _ = w.Write(s.trustBytes())
		return
	case path == wire.PathESTEnroll:
		s.enroll(w, r)
		return
	case path == wire.PathMQTT && r.Method == http.MethodGet && s.doors.WebSocket:
		s.webSocket(w, r)
		return
	case path == wire.PathMQTT && r.Method == http.MethodGet:
		writeProblem(w, wire.Problem{Status: 404, Title: "no such path"})
		return
	}
	if p := s.identify(r); p != nil {
		writeProblem(w, *p)
		return
	}
	switch {
	case path == wire.PathESTReenroll:
		s.issue(w, r)
	case path == wire.PathDesired:
		s.desired(w, r)
	case path == wire.PathReport:
		s.report(w, r)
	case strings.HasPrefix(path, wire.PathDocuments):
		s.document(w, r, wire.Hash(strings.TrimPrefix(path, wire.PathDocuments)))
	case path == wire.PathMetrics:
		s.keep(w, r, wire.MaxMetricsBytes, func(body []byte) { s.metrics = append(s.metrics, body) })
	case path == wire.PathMQTT: // CONNECT, which asks who it is
	case path == wire.PathEvents:
		s.event(w, r)
	case path == wire.PathCommands:
		s.list(w)
	case strings.HasPrefix(path, wire.PathCommands+"/"):
		s.result(w, r)
	case path == wire.PathDisposal:
		s.keep(w, r, wire.MaxReportBytes, func(body []byte) { s.disposal = body })
	case strings.HasPrefix(path, wire.PathArtifacts):
		s.file(w, r, s.Artifacts[strings.TrimPrefix(path, wire.PathArtifacts)])
	case strings.HasPrefix(path, wire.PathTUF):
		s.file(w, r, s.Metadata[strings.TrimPrefix(path, wire.PathTUF)])
	default:
		writeProblem(w, wire.Problem{Status: 404, Title: "no such path"})
	}
}

func (s *Server) file(w http.ResponseWriter, r *http.Request, content []byte) {
	if content == nil {
		writeProblem(w, wire.Problem{Status: 404, Title: "Not Found"})
		return
	}
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
}

func (s *Server) keep(w http.ResponseWriter, r *http.Request, limit int64, put func(body []byte)) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil || r.Method != http.MethodPost {
		writeProblem(w, wire.Problem{Status: 413, Title: "too large"})
		return
	}
	s.Do(func() { put(body) })
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) enroll(w http.ResponseWriter, r *http.Request) {
	serial, secret, _ := r.BasicAuth()
	if serial != Serial || secret != Secret {
		writeProblem(w, wire.Problem{Status: 401, Title: "Unauthorized", Code: wire.CodeTokenInvalid, Detail: "unknown or for another serial number"})
		return
	}
	s.issue(w, r)
}

// issue gives one certificate per key and request; the token takes one key only.
func (s *Server) issue(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	der, err := base64.StdEncoding.DecodeString(string(body))
	if err != nil {
		writeProblem(w, wire.Problem{Status: 400, Title: "no base64"})
		return
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		writeProblem(w, wire.Problem{Status: 400, Title: err.Error()})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Path == wire.PathESTEnroll {
		if s.usedKey != nil && !s.ManyKeys && string(s.usedKey) != string(csr.RawSubjectPublicKeyInfo) {
			writeProblem(w, wire.Problem{Status: 403, Title: "Forbidden", Code: wire.CodeTokenUsed})
			return
		}
		s.usedKey = csr.RawSubjectPublicKeyInfo
	}
	number, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		s.t.Error(err)
	}
	now := s.Now()
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: DeviceID}, NotBefore: now.Add(-s.Life / 10), NotAfter: now.Add(s.Life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, s.ca, csr.PublicKey, s.caKey)
	if err != nil {
		s.t.Error(err)
	}
	s.issued[number.String()] = "issued"
	s.LastKey = csr.PublicKey
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	_, _ = w.Write([]byte(base64.StdEncoding.EncodeToString(CertsOnly(cert))))
}

// CertsOnly wraps certificates in a degenerate CMS message.
func CertsOnly(certs ...[]byte) []byte {
	var all []byte
	for _, c := range certs {
		all = append(all, c...)
	}
	mustDER := func(v any) []byte {
		der, err := asn1.Marshal(v)
		if err != nil {
			panic(err)
		}
		return der
	}
	inner := mustDER(struct {
		Version int
		Digests []asn1.RawValue `asn1:"set"`
		Content struct{ Type asn1.ObjectIdentifier }
		Certs   asn1.RawValue
		Signers []asn1.RawValue `asn1:"set"`
	}{
		Version: 1,
		Content: struct{ Type asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}},
		Certs:   asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: all},
	})
	return mustDER(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}})
}

// identify checks the client certificate; the first use of a newer one supersedes the older ones.
func (s *Server) identify(r *http.Request) *wire.Problem {
	if len(r.TLS.PeerCertificates) == 0 {
		return &wire.Problem{Status: 401, Title: "Unauthorized", Code: wire.CodeCertificateRequired}
	}
	cert := r.TLS.PeerCertificates[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.issued[cert.SerialNumber.String()] {
	case "":
		return &wire.Problem{Status: 403, Title: "Forbidden", Code: wire.CodeUnknownDevice}
	case "revoked":
		return &wire.Problem{Status: 403, Title: "Forbidden", Code: wire.CodeRevoked}
	case "superseded":
		return &wire.Problem{Status: 403, Title: "Forbidden", Code: wire.CodeSuperseded}
	case "issued":
		for n, state := range s.issued {
			if state == "used" && !s.ManyKeys {
				s.issued[n] = "superseded"
			}
		}
		s.issued[cert.SerialNumber.String()] = "used"
	}
	return nil
}

func (s *Server) desired(w http.ResponseWriter, r *http.Request) {
	wait, _ := strconv.Atoi(r.URL.Query().Get("wait"))
	deadline := time.After(time.Duration(wait) * time.Second)
	for {
		s.mu.Lock()
		epoch, woken := s.epoch, s.woken
		if n := len(s.waitingCommands()); n > 0 {
			w.Header().Set(wire.CommandsHeader, strconv.Itoa(n))
			wait = 0
		}
		etag := `"` + strconv.FormatInt(epoch, 10) + `"`
		if r.Header.Get("If-None-Match") != etag {
			d := wire.Desired{Protocol: wire.Protocol, Device: DeviceID, Epoch: epoch, Sections: map[wire.Section]wire.Hash{}, Issued: s.Now(), Expires: s.Now().Add(time.Hour)}
			for k, v := range s.sections {
				d.Sections[k] = v
			}
			replace := s.Envelope
			s.mu.Unlock()
			envelope := s.Seal(d)
			if replace != nil {
				envelope = replace(d)
			}
			w.Header().Set("ETag", etag)
			_, _ = w.Write(envelope)
			return
		}
		s.mu.Unlock()
		if wait == 0 {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		select {
		case <-woken:
		case <-deadline:
			w.WriteHeader(http.StatusNotModified)
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Server) report(w http.ResponseWriter, r *http.Request) {
	var rep wire.Report
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxReportBytes))
	if err == nil {
		err = wire.Decode(body, &rep)
	}
	if err == nil && (rep.Protocol != wire.Protocol || rep.Boot == "" || rep.Instance == "" || rep.Sequence < 1) {
		err = errors.New("incomplete report")
	}
	if err != nil {
		writeProblem(w, wire.Problem{Status: 422, Title: err.Error()})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := wire.ReportAnswer{Epoch: s.epoch, Time: s.Now(), IntervalSeconds: s.Interval}
	for section, hash := range rep.Sections {
		if _, known := s.docs[hash]; !known {
			answer.Missing = append(answer.Missing, hash)
			continue
		}
		s.reported[section] = hash
	}
	s.reports = append(s.reports, rep)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *Server) document(w http.ResponseWriter, r *http.Request, hash wire.Hash) {
	if r.Method == http.MethodPut {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxDocumentBytes))
		if err != nil || wire.HashOf(body) != hash {
			writeProblem(w, wire.Problem{Status: 422, Title: "another document"})
			return
		}
		s.Do(func() { s.docs[hash] = body })
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.mu.Lock()
	body, has := s.docs[hash]
	s.mu.Unlock()
	if !has {
		writeProblem(w, wire.Problem{Status: 404, Title: "Not Found", Code: wire.CodeDocumentMissing})
		return
	}
	_, _ = w.Write(body)
}

// Eventually waits for a condition, at most ten seconds.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		<-tick.C
	}
}
