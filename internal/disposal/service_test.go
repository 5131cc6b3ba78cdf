package disposal_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"sync"
	"testing"
	"time"

	"steward/internal/device"
	"steward/internal/disposal"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/registry"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/twin"
	"steward/internal/ui"
	"steward/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

var start = time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC)

// yard is the room with the real registry, twin and ledger, and a device authority of its own.
type yard struct {
	*disposal.Service
	t         testing.TB
	db        *sqldb.DB
	ledger    *ledger.Ledger
	devices   *registry.Service
	twin      *twin.Service
	authority *authority
	cfg       disposal.Config
	who       httpapi.Principal
	mu        sync.Mutex
	now       time.Time
}

func (y *yard) clock() time.Time {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.now
}

func (y *yard) pass(d time.Duration) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.now = y.now.Add(d)
}

func each(t *testing.T, test func(t *testing.T, y *yard)) {
	migrations := []sqldb.Migration{ledger.Migration(), registry.Migration(), twin.Migration(), disposal.Migration()}
	sqldbtest.Each(t, migrations, func(t *testing.T, db *sqldb.DB) { test(t, newYard(t, db)) })
}

func newYard(t testing.TB, db *sqldb.DB) *yard {
	y := &yard{t: t, db: db, ledger: ledgertest.New(t, db), now: start}
	quiet := slog.New(slog.DiscardHandler)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	y.must(err)
	y.devices = registry.New(registry.Config{DB: db, Ledger: y.ledger, Now: y.clock, Log: quiet})
	y.twin = twin.New(twin.Config{DB: db, Key: key, Now: y.clock, Log: quiet})
	y.authority = newAuthority(t, y)
	y.cfg = disposal.Config{
		DB: db, Devices: y.devices, Certificates: y.authority, Twin: y.twin, Ledger: y.ledger, Key: key, Issuer: "Example Fleet",
		Now: y.clock, Log: quiet,
		Provenance: func(_ context.Context, _ sqldb.Reader, num int64) (disposal.Provenance, bool, error) {
			return disposal.Provenance{Order: "ord-1", Number: "PO-1", Line: 1, Supplier: "Acme Ltd.", Maker: "Acme", ModelName: "Gateway 1", Ordered: start, Delivery: "del-1"}, true, nil
		},
	}
	y.cfg.Effects = []func(context.Context, device.Device) ([]ui.Notice, error){func(_ context.Context, d device.Device) ([]ui.Notice, error) {
		if d.Stage != device.Active {
			return nil, nil
		}
		return []ui.Notice{{Level: ui.Warn, Title: "It is online", Detail: "It runs app 1.2.", Count: 1}}, nil
	}}
	y.Service, err = disposal.New(y.cfg)
	y.must(err)
	y.who = httpapi.Principal{
		Actor: device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}, Role: httpapi.Operator,
		Scope: device.Scope{Tenant: device.DefaultTenant},
	}
	return y
}

func (y *yard) must(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

// authority stands for the room provisioning.
type authority struct {
	y    *yard
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	mu   sync.Mutex
	of   map[int64]*identity
}

type identity struct {
	key     *ecdsa.PrivateKey
	leaf    *x509.Certificate
	revoked bool
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB, y *yard) *authority {
	a := &authority{y: y, key: newKey(t), of: map[int64]*identity{}}
	a.root = sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: start.AddDate(-1, 0, 0), NotAfter: start.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, a.key.Public(), a.key)
	return a
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) enroll(t testing.TB, d device.Device) *identity {
	id := &identity{key: newKey(t)}
	id.leaf = sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1000 + d.Num), Subject: pkix.Name{CommonName: string(d.ID)}, NotBefore: start.AddDate(0, 0, -1), NotAfter: start.AddDate(0, 3, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.root, id.key.Public(), a.key)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.of[d.Num] = id
	return id
}

func (a *authority) DeviceChain(_ context.Context, _ sqldb.Reader, num int64) ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := a.of[num]
	if id == nil || id.revoked {
		return nil, fault.New(fault.NotFound, "no valid certificate")
	}
	return []*x509.Certificate{id.leaf, a.root}, nil
}

func (a *authority) Revoke(ctx context.Context, tx *sqldb.Tx, actor device.Actor, num int64, reason string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := a.of[num]
	if id == nil || id.revoked {
		return nil
	}
	d, err := a.y.devices.ByNum(ctx, tx, num)
	if err != nil {
		return err
	}
	tx.AfterCommit(func() { a.mu.Lock(); defer a.mu.Unlock(); id.revoked = true })
	return a.y.ledger.Append(ctx, tx, ledger.Event{
		Tenant: d.Tenant, Kind: "provisioning.revoked", Device: d.ID, Actor: actor, Reason: reason, At: a.y.clock(),
		Data: ledger.Facts(map[string]any{"certificates": 1, "tokens": 0}),
	})
}

// device makes one that was bought; enrolled ones have an identity and are active.
func (y *yard) device(serial string, enrolled bool) (device.Device, *identity) {
	y.t.Helper()
	ctx := y.t.Context()
	var d device.Device
	y.must(y.db.Write(ctx, func(tx *sqldb.Tx) (err error) {
		d, err = y.devices.Create(ctx, tx, y.who.Actor, device.New{Tenant: device.DefaultTenant, Serial: serial, Model: "gw-1", Stage: device.Received, Reason: "order PO-1"})
		if err != nil {
			return err
		}
		return y.ledger.Append(ctx, tx, ledger.Event{
			Tenant: d.Tenant, Kind: "purchase.received", Device: d.ID, Subject: "ord-1", Actor: y.who.Actor, At: y.clock(),
			Data: ledger.Facts(map[string]any{"order": "PO-1", "order_id": "ord-1", "line": 1, "delivery": "del-1", "serial": serial, "model": "gw-1"}),
		})
	}))
	if !enrolled {
		return d, nil
	}
	y.pass(time.Hour)
	d = y.move(d, device.Staged, device.Enrolled, device.Active)
	return d, y.authority.enroll(y.t, d)
}

func (y *yard) move(d device.Device, stages ...device.Stage) device.Device {
	y.t.Helper()
	y.must(y.db.Write(y.t.Context(), func(tx *sqldb.Tx) (err error) {
		for _, st := range stages {
			if d, err = y.devices.Move(y.t.Context(), tx, y.who.Actor, device.Move{Num: d.Num, To: st, Reason: "test"}); err != nil {
				return err
			}
		}
		return nil
	}))
	return d
}

func (y *yard) get(d device.Device) device.Device {
	y.t.Helper()
	d, err := y.devices.ByNum(y.t.Context(), y.db, d.Num)
	y.must(err)
	return d
}

// ordered makes an enrolled device that was retired and ordered to sanitize itself.
func (y *yard) ordered(serial string) (device.Device, *identity, disposal.Disposal) {
	y.t.Helper()
	d, id := y.device(serial, true)
	y.pass(time.Hour)
	d, err := y.Retire(y.t.Context(), y.who, d.ID, "end of support")
	y.must(err)
	x, err := y.Order(y.t.Context(), y.who, d.ID, "end of support", serial)
	y.must(err)
	return d, id, x
}

func statementOf(d device.Device, id *identity, x disposal.Disposal) wire.SanitizationStatement {
	keyID, _ := wire.KeyIDOf(id.key.Public())
	return wire.SanitizationStatement{
		Order: x.ID, Device: string(d.ID), Serial: d.Serial, Method: x.Method, KeyID: keyID, Started: start, Finished: start.Add(time.Minute),
		Items: []wire.SanitizedItem{
			{What: "release files of app 1.2", Technique: "overwrite with zeros and unlink", SizeBytes: 4096, Result: "destroyed"},
			{What: "journal", Technique: "overwrite with zeros and unlink", Result: "destroyed"},
		},
	}
}

func (y *yard) seal(s wire.SanitizationStatement, key crypto.Signer) []byte {
	y.t.Helper()
	envelope, err := wire.Seal(wire.SanitizationType, s, key)
	y.must(err)
	return envelope
}

func (y *yard) kinds(d device.Device) map[string]int {
	counts := map[string]int{}
	for _, k := range ledgertest.Kinds(y.t, y.ledger, d.ID) {
		counts[k]++
	}
	return counts
}

// desired tells whether the device has the order in its desired state.
func (y *yard) desired(d device.Device) map[wire.Section]wire.Hash {
	y.t.Helper()
	envelope, _, err := y.twin.Envelope(y.t.Context(), d)
	y.must(err)
	var doc wire.Desired
	y.must(wire.Open(envelope, wire.DesiredType, []crypto.PublicKey{y.cfg.Key.Public()}, &doc))
	return doc.Sections
}

func TestSignedStatementDisposesOfTheDevice(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, id := y.device("SN-1", true)
		y.must(y.db.Write(t.Context(), func(tx *sqldb.Tx) error {
			return y.twin.SetDesired(t.Context(), tx, d.Num, wire.SectionUpdate, wire.UpdateDesired{})
		}))
		if _, err := y.Order(t.Context(), y.who, d.ID, "old", "SN-1"); !errors.Is(err, fault.Conflict) {
			t.Errorf("ordering an active device: %v", err)
		}
		d, err := y.Retire(t.Context(), y.who, d.ID, "end of support")
		y.must(err)
		if _, err := y.Order(t.Context(), y.who, d.ID, "old", "SN-2"); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("ordering with another serial number: %v", err)
		}
		x, err := y.Order(t.Context(), y.who, d.ID, "end of support", "SN-1")
		y.must(err)
		if sections := y.desired(d); sections[wire.SectionDisposal] == "" || sections[wire.SectionUpdate] != "" {
			t.Errorf("desired %v, want the order only", sections)
		}
		envelope := y.seal(statementOf(d, id, x), id.key)
		y.must(y.Accept(t.Context(), d, envelope))
		if d = y.get(d); d.Stage != device.Disposed {
			t.Errorf("stage %s", d.Stage)
		}
		if !id.revoked {
			t.Error("the certificate is not revoked")
		}
		y.must(y.Accept(t.Context(), d, envelope))                              // the answer was lost
		y.must(y.Accept(t.Context(), d, y.seal(statementOf(d, id, x), id.key))) // and signed anew
		other := statementOf(d, id, x)
		other.Items = other.Items[:1]
		if err := y.Accept(t.Context(), d, y.seal(other, id.key)); !errors.Is(err, fault.Forbidden) {
			t.Errorf("another statement afterwards: %v", err)
		}
		kinds := y.kinds(d)
		for _, kind := range []string{"disposal.ordered", "provisioning.revoked", "disposal.sanitized"} {
			if kinds[kind] != 1 {
				t.Errorf("%d events %s, want one", kinds[kind], kind)
			}
		}
	})
}

func TestWrongStatementChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, id, x := y.ordered("SN-1")
		stranger := &identity{key: newKey(t)}
		for name, change := range map[string]func(s *wire.SanitizationStatement){
			"another order":       func(s *wire.SanitizationStatement) { s.Order = "dsp-0000" },
			"another device":      func(s *wire.SanitizationStatement) { s.Device = "dev-0000" },
			"another serial":      func(s *wire.SanitizationStatement) { s.Serial = "SN-9" },
			"another method":      func(s *wire.SanitizationStatement) { s.Method = "destroy" },
			"another key":         func(s *wire.SanitizationStatement) { s.KeyID = "00" },
			"nothing destroyed":   func(s *wire.SanitizationStatement) { s.Items = nil },
			"item without result": func(s *wire.SanitizationStatement) { s.Items[0].Result = "" },
		} {
			s := statementOf(d, id, x)
			change(&s)
			if err := y.Accept(t.Context(), d, y.seal(s, id.key)); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		good := statementOf(d, id, x)
		if err := y.Accept(t.Context(), d, y.seal(good, stranger.key)); !errors.Is(err, fault.Forbidden) {
			t.Errorf("signed by a stranger: %v", err)
		}
		for name, body := range map[string][]byte{"nothing": nil, "garbage": []byte("{"), "other type": []byte(`{"payloadType":"x","payload":"e30=","signatures":[]}`)} {
			if err := y.Accept(t.Context(), d, body); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := y.Accept(t.Context(), d, make([]byte, wire.MaxEnvelopeBytes+1)); !errors.Is(err, fault.TooLarge) {
			t.Errorf("oversized: %v", err)
		}
		if got := y.get(d).Stage; got != device.Retired || id.revoked {
			t.Errorf("stage %s, revoked %v", got, id.revoked)
		}
	})
}

func TestFailedSanitizationKeepsTheDeviceRetiredAndCanSucceedLater(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, id, x := y.ordered("SN-1")
		bad := statementOf(d, id, x)
		bad.Items[1].Result = "input/output error\x00"
		envelope := y.seal(bad, id.key)
		for range 2 { // the answer may be lost
			if err := y.Accept(t.Context(), d, envelope); !errors.Is(err, fault.Conflict) {
				t.Fatalf("statement with a leftover: %v", err)
			}
		}
		if d = y.get(d); d.Stage != device.Retired || id.revoked {
			t.Errorf("stage %s, revoked %v", d.Stage, id.revoked)
		}
		got, err := y.Get(t.Context(), y.who, x.ID)
		if err != nil || got.State != disposal.Failed || got.Cause != "journal: input/output error " {
			t.Errorf("%+v, %v", got, err)
		}
		if kinds := y.kinds(d); kinds["disposal.failed"] != 1 {
			t.Errorf("events %v", kinds)
		}
		notices, err := y.Notices(t.Context(), y.who.Scope)
		if err != nil || len(notices) == 0 || notices[0].Count != 1 {
			t.Errorf("notices %+v, %v", notices, err)
		}
		again, err := y.Order(t.Context(), y.who, d.ID, "try again", "SN-1")
		y.must(err)
		// The agent stays with the order that it has begun.
		y.must(y.Accept(t.Context(), d, y.seal(statementOf(d, id, x), id.key)))
		if got := y.get(d).Stage; got != device.Disposed {
			t.Errorf("stage %s", got)
		}
		if got, _ := y.Get(t.Context(), y.who, again.ID); got.State != disposal.Superseded {
			t.Errorf("the second order is %s", got.State)
		}
	})
}

func TestReportedStateIsFollowed(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, _, x := y.ordered("SN-1")
		report := func(body string) error {
			return y.db.Write(t.Context(), func(tx *sqldb.Tx) error { return y.Reported(t.Context(), tx, d, []byte(body)) })
		}
		state := func() disposal.State {
			got, err := y.Get(t.Context(), y.who, x.ID)
			y.must(err)
			return got.State
		}
		y.must(report(`{"order":"dsp-other","state":"failed"}`))
		if state() != disposal.Ordered {
			t.Error("another order's state counted")
		}
		y.must(report(`{"order":"` + x.ID + `","state":"accepted"}`))
		y.must(report(`{"order":"` + x.ID + `","state":"accepted"}`))
		if state() != disposal.Accepted {
			t.Errorf("state %s", state())
		}
		y.must(report(`{"order":"` + x.ID + `","state":"sanitized"}`))
		if state() != disposal.Accepted || y.get(d).Stage != device.Retired {
			t.Error("a report without a signature counted as sanitized")
		}
		y.must(report(`{"order":"` + x.ID + `","state":"failed","cause":"disk gone"}`))
		y.must(report(`{"order":"` + x.ID + `","state":"failed","cause":"disk still gone"}`))
		if state() != disposal.Failed {
			t.Errorf("state %s", state())
		}
		if err := report(`[]`); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("no report: %v", err)
		}
		if kinds := y.kinds(d); kinds["disposal.accepted"] != 1 || kinds["disposal.failed"] != 1 {
			t.Errorf("events %v", kinds)
		}
	})
}

var attestation = disposal.Attestation{
	Method: disposal.MethodDestroy, Technique: "shredded to 2 mm particles", Performer: "Grace, Shred Ltd.", Witness: "Alan, Example",
	Performed: "2026-05-30", Evidence: "protocol 4711, photographs in the safe",
}

func TestDeviceWithoutCertificateIsAttested(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, _ := y.device("SN-1", false)
		attest := func(a disposal.Attestation) (disposal.Disposal, error) {
			return y.Attest(t.Context(), y.who, d.ID, a, "broken", "SN-1")
		}
		if _, err := attest(attestation); !errors.Is(err, fault.Conflict) {
			t.Errorf("attesting a device that is not retired: %v", err)
		}
		_, err := y.Retire(t.Context(), y.who, d.ID, "broken")
		y.must(err)
		if _, err := y.Order(t.Context(), y.who, d.ID, "broken", "SN-1"); !errors.Is(err, fault.Conflict) {
			t.Errorf("ordering a device that can't sign: %v", err)
		}
		same := attestation
		same.Witness = " grace, shred ltd."
		if _, err := attest(same); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("performer as witness: %v", err)
		}
		future := attestation
		future.Performed = "2026-07-01"
		if _, err := attest(future); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("done in the future: %v", err)
		}
		x, err := attest(attestation)
		if err != nil || x.State != disposal.Attested || y.get(d).Stage != device.Disposed {
			t.Fatalf("%+v, %v", x, err)
		}
		if _, err := attest(attestation); !errors.Is(err, fault.Conflict) {
			t.Errorf("attesting twice: %v", err)
		}
	})
}

func TestAttestingSupersedesAnOrderAndRevokes(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, id, x := y.ordered("SN-1")
		_, err := y.Attest(t.Context(), y.who, d.ID, attestation, "stolen and found burnt", "SN-1")
		y.must(err)
		if got, _ := y.Get(t.Context(), y.who, x.ID); got.State != disposal.Superseded {
			t.Errorf("order is %s", got.State)
		}
		if !id.revoked {
			t.Error("the certificate is not revoked")
		}
		if err := y.Accept(t.Context(), y.get(d), y.seal(statementOf(d, id, x), id.key)); !errors.Is(err, fault.Forbidden) {
			t.Errorf("statement of an attested device: %v", err)
		}
	})
}

func TestBulkOrderReachesWhatThePreviewSaid(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		var devices []device.Device
		for _, serial := range []string{"A", "B", "C"} {
			d, _ := y.device(serial, serial != "C")
			devices = append(devices, y.move(d, device.Retired))
		}
		_, err := y.Order(t.Context(), y.who, devices[0].ID, "first", "A")
		y.must(err)
		p, err := y.PreviewBulk(t.Context(), y.who, device.Selector{})
		if err != nil || p.Devices != 1 || p.Skips != 2 || len(p.Examples) != 1 || p.Examples[0] != devices[1].ID {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := y.OrderBulk(t.Context(), y.who, device.Selector{}, "all old", 2); !errors.Is(err, fault.Conflict) {
			t.Errorf("wrong number: %v", err)
		}
		_, err = y.OrderBulk(t.Context(), y.who, device.Selector{}, "all old", 1)
		y.must(err)
		list, _, err := y.List(t.Context(), y.who, disposal.Filter{State: disposal.Ordered, Limit: 10})
		if err != nil || len(list) != 2 {
			t.Errorf("%d ordered, %v", len(list), err)
		}
		waiting, next, err := y.Waiting(t.Context(), y.who, httpapi.PageIn{Limit: 2})
		if err != nil || len(waiting) != 2 || next == "" || waiting[0].Disposal == nil {
			t.Errorf("%+v, %v", waiting, err)
		}
	})
}

func TestOtherPartsOfTheFleetAreOutOfReach(t *testing.T) {
	each(t, func(t *testing.T, y *yard) {
		d, _, x := y.ordered("SN-1")
		part := y.who
		part.Scope.Selector = device.MustSelector("site=berlin")
		other := y.who
		other.Scope.Tenant = "other"
		for name, who := range map[string]httpapi.Principal{"selector": part, "tenant": other} {
			_, errPreview := y.Preview(t.Context(), who, d.ID)
			_, errOrder := y.Order(t.Context(), who, d.ID, "x", "SN-1")
			_, errAttest := y.Attest(t.Context(), who, d.ID, attestation, "x", "SN-1")
			_, errGet := y.Get(t.Context(), who, x.ID)
			_, errCertificate := y.Certificate(t.Context(), who.Scope, x.ID)
			for i, err := range []error{errPreview, errOrder, errAttest, errGet, errCertificate} {
				if !errors.Is(err, fault.NotFound) {
					t.Errorf("%s, call %d: %v", name, i, err)
				}
			}
			if list, _, err := y.List(t.Context(), who, disposal.Filter{Limit: 10}); err != nil || len(list) != 0 {
				t.Errorf("%s lists %+v, %v", name, list, err)
			}
		}
	})
}
