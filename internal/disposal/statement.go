package disposal

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// errLeftovers is told to a device that could not destroy everything; it keeps its key and certificate.
func errLeftovers(x Disposal) error {
	return fault.New(fault.Conflict, "the statement is stored as failed, since not everything is destroyed (%s): keep your key and wait for the next order", x.Cause)
}

// Accept takes the signed statement of a device, for POST /v1/disposal. When it returns nil, the
// statement is stored, the certificates are revoked and the device is disposed of, all durably: the
// device may destroy its key. The same statement again, after a lost answer, gets the same answer.
func (s *Service) Accept(ctx context.Context, d device.Device, envelope []byte) error {
	if len(envelope) > wire.MaxEnvelopeBytes {
		return fault.New(fault.TooLarge, "a statement has at most %d KiB", wire.MaxEnvelopeBytes>>10)
	}
	var answer error
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		answer = nil
		// The caller's device may be older than this transaction.
		d, err := s.cfg.Devices.ByNum(ctx, tx, d.Num)
		if err != nil {
			return err
		}
		if err := lock(ctx, tx, d.Num); err != nil {
			return err
		}
		list, err := ofDevice(ctx, tx, d.Num)
		if err != nil {
			return err
		}
		for _, x := range list {
			switch {
			case !sameStatement(x.statement, envelope):
			case x.State == Sanitized:
				return nil
			case x.State == Failed:
				answer = errLeftovers(x)
				return nil
			}
		}
		if d.Stage == device.Disposed {
			return fault.Coded(fault.Forbidden, wire.CodeDecommissioned, "%s is disposed of already, with another statement", d.DisplayName())
		}
		answer, err = s.accept(ctx, tx, d, list, envelope)
		return err
	})
	if err != nil {
		return err
	}
	return answer // of what was stored
}

// sameStatement tells whether two envelopes hold the same statement. A device that signs anew after a
// restart sends another ECDSA signature over it; the stored one has been verified.
func sameStatement(stored, sent []byte) bool {
	var a, b wire.Envelope
	return len(stored) > 0 && wire.Decode(stored, &a) == nil && wire.Decode(sent, &b) == nil &&
		a.PayloadType == b.PayloadType && bytes.Equal(a.Payload, b.Payload)
}

// accept verifies and stores a statement about one of the device's disposals. An order that was
// superseded or reported as failed counts too: an agent stays with the order that it has begun, and
// goes on after a failure. The first error is told to the device after the commit, the second undoes
// everything.
func (s *Service) accept(ctx context.Context, tx *sqldb.Tx, d device.Device, list []Disposal, envelope []byte) (answer, err error) {
	chain, err := s.cfg.Certificates.DeviceChain(ctx, tx, d.Num)
	if errors.Is(err, fault.NotFound) {
		return nil, fault.Coded(fault.Forbidden, wire.CodeRevoked, "%s has no valid certificate: its statement proves nothing", d.DisplayName())
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate of %s: %w", d.ID, err)
	}
	statement, keyID, err := openStatement(envelope, chain[0])
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(x Disposal) bool { return x.ID == statement.Order && x.Attestation == nil })
	if i < 0 {
		return nil, fault.New(fault.Conflict, "nobody has given %s the order %.40q to sanitize itself", d.DisplayName(), statement.Order)
	}
	x := list[i]
	if err := checkStatement(statement, d, x, keyID); err != nil {
		return nil, err
	}
	x.statement, x.Ended, x.Cause = envelope, s.now(), ""
	x.chain = nil
	for _, c := range chain {
		x.chain = append(x.chain, c.Raw)
	}
	if x.AcceptedAt.IsZero() {
		x.AcceptedAt = x.Ended
	}
	if left := leftovers(statement); left != "" {
		x, err = s.fail(ctx, tx, d, x, left)
		return errLeftovers(x), err
	}
	if d.Stage != device.Retired {
		return nil, fault.New(fault.Conflict, "%s is %s: it must be retired to be disposed of", d.DisplayName(), d.Stage)
	}
	if !x.State.Open() {
		if err := s.supersede(ctx, tx, deviceActor(d), d, "the device has carried out the order "+x.ID); err != nil {
			return nil, err
		}
	}
	x.State = Sanitized
	if err := update(ctx, tx, x); err != nil {
		return nil, err
	}
	return nil, s.finish(ctx, tx, deviceActor(d), d, x, "disposal.sanitized", sanitizedFacts{
		Order: x.ID, Serial: d.Serial, Model: d.Model, Method: x.Method, Statement: wire.HashOf(envelope), KeyID: keyID,
		Certificate: chain[0].SerialNumber.Text(16), Items: len(statement.Items),
	})
}

// sanitizedFacts are what the ledger keeps of a sanitization; a disposal certificate is held to them.
type sanitizedFacts struct {
	Order       string    `json:"order"`
	Serial      string    `json:"serial"`
	Model       string    `json:"model"`
	Method      string    `json:"method"`
	Statement   wire.Hash `json:"statement_sha256"` // of the envelope as the device sent it
	KeyID       string    `json:"key_id"`
	Certificate string    `json:"certificate"` // serial number, hex
	Items       int       `json:"items"`
}

// attestedFacts are the same of an attestation.
type attestedFacts struct {
	Order       string    `json:"order"`
	Serial      string    `json:"serial"`
	Model       string    `json:"model"`
	Method      string    `json:"method"`
	Attestation wire.Hash `json:"attestation_sha256"` // of its canonical JSON
	Performer   string    `json:"performer"`
	Witness     string    `json:"witness"`
}

// finish ends a device's life: disposal, revocation, move and event in the caller's transaction. The
// room's own event comes last, so that the others are in the ledger's tree when it is.
func (s *Service) finish(ctx context.Context, tx *sqldb.Tx, actor device.Actor, d device.Device, x Disposal, kind string, facts any) error {
	reason := "disposal " + x.ID + ": " + x.Reason
	if err := s.cfg.Certificates.Revoke(ctx, tx, actor, d.Num, reason); err != nil {
		return fmt.Errorf("revoke the certificates of %s: %w", d.ID, err)
	}
	if _, err := s.cfg.Devices.Move(ctx, tx, actor, device.Move{Num: d.Num, To: device.Disposed, Reason: reason}); err != nil {
		return err
	}
	if err := s.cfg.Twin.ClearDesired(ctx, tx, d.Num, wire.SectionDisposal); err != nil {
		return fmt.Errorf("clear desired disposal of %s: %w", d.ID, err)
	}
	return s.record(ctx, tx, actor, d, ledger.Event{Kind: kind, Subject: x.ID, Reason: x.Reason, Data: ledger.Facts(facts)})
}

func deviceActor(d device.Device) device.Actor {
	return device.Actor{Kind: device.ActorDevice, ID: string(d.ID), Name: d.DisplayName()}
}

// openStatement verifies a statement by the key of the device's certificate.
func openStatement(envelope []byte, leaf *x509.Certificate) (statement wire.SanitizationStatement, keyID string, err error) {
	err = wire.Open(envelope, wire.SanitizationType, []crypto.PublicKey{leaf.PublicKey}, &statement)
	switch {
	case errors.Is(err, wire.ErrSignature):
		return statement, "", fault.New(fault.Forbidden, "the statement is not signed by the key of the device's certificate %s", leaf.SerialNumber.Text(16))
	case err != nil:
		return statement, "", fault.Bad("body", "no statement of sanitization: %v", err)
	}
	keyID, err = wire.KeyIDOf(leaf.PublicKey)
	return statement, keyID, err
}

// fail notes why a disposal has not succeeded. The device stays retired and keeps order and
// certificate: it may go on and succeed, or be ordered again. Repeated failures are one event.
func (s *Service) fail(ctx context.Context, tx *sqldb.Tx, d device.Device, x Disposal, cause string) (Disposal, error) {
	told := x.State == Failed
	if x.State.Open() {
		x.State = Failed
	}
	x.Ended, x.Cause = s.now(), cut(cause, maxItemBytes)
	if err := update(ctx, tx, x); err != nil || told {
		return x, err
	}
	return x, s.record(ctx, tx, deviceActor(d), d, ledger.Event{Kind: "disposal.failed", Subject: x.ID, Reason: cut(x.Cause, 400),
		Data: ledger.Facts(map[string]string{"order": x.ID, "cause": x.Cause})})
}

// cut bounds a text that a device wrote, at a character's boundary, and takes out what no database and
// no page should hold.
func cut(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xc0 == 0x80 { // a byte inside of a character
		limit--
	}
	return s[:limit]
}

// Reported follows a device that works on its order: the reaction to its reported section "disposal".
// What it says about another order is old news. That it is sanitized counts only by its
// signed statement.
func (s *Service) Reported(ctx context.Context, tx *sqldb.Tx, d device.Device, body []byte) error {
	var r wire.DisposalReported
	if err := json.Unmarshal(body, &r); err != nil {
		return fault.New(fault.Unprocessable, "reported section disposal: %v", err)
	}
	if err := lock(ctx, tx, d.Num); err != nil {
		return err
	}
	list, err := ofDevice(ctx, tx, d.Num)
	if err != nil {
		return err
	}
	for _, x := range list {
		if x.ID != r.Order {
			continue
		}
		switch {
		case r.State == string(Failed) && (x.State.Open() || x.State == Failed):
			_, err := s.fail(ctx, tx, d, x, cmp.Or(r.Cause, "the device gave no cause"))
			return err
		case r.State == string(Accepted) && x.State == Ordered:
			return s.accepted(ctx, tx, d, x)
		}
	}
	return nil
}

func (s *Service) accepted(ctx context.Context, tx *sqldb.Tx, d device.Device, x Disposal) error {
	x.State, x.AcceptedAt = Accepted, s.now()
	if err := update(ctx, tx, x); err != nil {
		return err
	}
	return s.record(ctx, tx, deviceActor(d), d, ledger.Event{Kind: "disposal.accepted", Subject: x.ID,
		Data: ledger.Facts(map[string]string{"order": x.ID})})
}
