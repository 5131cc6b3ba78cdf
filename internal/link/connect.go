package link

import (
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"time"

	"steward/internal/fault"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

const (
	connectBytes   = 32 << 10 // of CONNECT; a will is small
	largeBytes     = 16 << 10 // packets from here on share largeTotal
	largeTotal     = 64 << 20 // bytes of large packets that are read or handled at a time, of all devices
	maxClientID    = 256      // bytes; the standards ask for 23 at least
	windowDown     = wire.MQTTReceiveMaximum
	acceptedHere   = byte(0)
	refusedID      = byte(2) // return codes of 3.1.1, section 3.2.2.3 there
	refusedServer  = byte(3)
	refusedOther   = byte(5)
	refusedVersion = byte(1)
)

// packet reads the rest of a packet and acts on it. Its error ends the session.
func (ss *session) packet(first byte) error {
	c := ss.conn
	c.mode, c.until = patient, time.Now().Add(ss.s.cfg.BodyTimeout)
	defer func() { c.mode = quiet }()
	limit := wire.MaxMQTTBytes
	if ss.version == 0 {
		limit = connectBytes
	}
	h, err := mqtt.ReadLength(ss.stream, first, limit)
	if err != nil {
		return err
	}
	if ss.version == 0 && h.Type() != mqtt.TypeConnect {
		return &mqtt.PacketError{Code: mqtt.ProtocolError, Detail: "the first packet is not CONNECT"}
	}
	if n := int64(h.Length); n > largeBytes {
		c.until = c.until.Add(time.Duration(n) * time.Second / slowest)
		if err := ss.s.large.Acquire(ss.s.base, n); err != nil {
			return err
		}
		defer ss.s.large.Release(n)
	}
	var p mqtt.Packet
	if err := mqtt.ReadBody(ss.stream, h, ss.version, &p); err != nil {
		if ss.version == 0 && mqtt.ReasonOf(err) == mqtt.UnsupportedVersion {
			ss.version = mqtt.Version311 // who speaks something else understands this, if anything
			ss.connack(refusedVersion, nil)
			ss.version = 0
		}
		return err
	}
	switch {
	case ss.version == 0:
		return ss.connect(&p)
	case ss.over(): // it was revoked, for example, while the packet came
		return io.EOF
	}
	return ss.act(&p)
}

// connect answers CONNECT. A device is taken in when its certificate is; user name and password are for
// brokers, and nobody looks at them here.
func (ss *session) connect(p *mqtt.Packet) error {
	ss.version = p.ProtocolVersion
	clientID, assigned, refusal := ss.check(p)
	if refusal != nil {
		return ss.turnAway(refusal)
	}
	began := time.Now()
	d, err := ss.judge()
	if err != nil {
		return ss.turnAway(ss.s.strangerAtMQTT(ss.conn, err))
	}
	ss.id, ss.tenant, ss.clientID, ss.judged, ss.alive = d.ID, d.Tenant, strings.Clone(clientID), began, began
	ss.arrange(p)
	if ss.will != nil {
		if _, err := ss.address(ss.will.Topic); err != nil {
			return ss.turnAway(err)
		}
	}
	if !ss.pace(d.Num) {
		return errStopping
	}
	old, joined := ss.s.doors.join(ss, d.Num, began)
	if !joined {
		return ss.turnAway(fault.Later(fault.Unavailable, "", time.Second, "this device's certificates are changing"))
	}
	if old != nil {
		old.close("another connection with the same client identifier", mqtt.SessionTakenOver)
	}
	ss.s.tellTakeOver(ss)
	ss.s.cfg.Presence.Connected(d, ss.via(), ss.conn.RemoteAddr().String())
	return ss.welcome(p, assigned)
}

var errStopping = errors.New("the server shuts down")

// check says what of a CONNECT can't be; the error is one of connectError or of the will's topic.
func (ss *session) check(p *mqtt.Packet) (clientID, assigned string, err error) {
	c := &p.Connect
	switch {
	case p.Properties.AuthenticationMethod != "":
		return "", "", &mqtt.PacketError{Code: mqtt.BadAuthentication, Detail: "the certificate is the authentication; there is no other method"}
	case len(c.ClientIdentifier) > maxClientID, c.ClientIdentifier == "" && ss.version == mqtt.Version311 && !c.Clean:
		return "", "", &mqtt.PacketError{Code: mqtt.ClientIDInvalid, Detail: "the client identifier is empty in a session that should last, or longer than 256 bytes"}
	case c.WillFlag && c.WillRetain && ss.version == mqtt.Version5:
		return "", "", &mqtt.PacketError{Code: mqtt.RetainNotSupported, Detail: "nothing is retained here, also no will"}
	}
	clientID = c.ClientIdentifier
	if clientID == "" {
		assigned = "auto-" + rand.Text()
		clientID = assigned
	}
	return clientID, assigned, nil
}

// arrange notes what CONNECT asks for.
func (ss *session) arrange(p *mqtt.Packet) {
	ss.taciturn = p.Properties.RequestProblemInfoFlag && p.Properties.RequestProblemInfo == 0
	ss.keepAlive = time.Duration(p.Connect.Keepalive) * time.Second
	if ss.version == mqtt.Version5 && (ss.keepAlive == 0 || ss.keepAlive > wire.MaxMQTTKeepAlive*time.Second) {
		ss.keepAlive = wire.MaxMQTTKeepAlive * time.Second
	}
	ss.window, ss.mostBytes = windowDown, wire.MaxMQTTBytes
	if n := int(p.Properties.ReceiveMaximum); n > 0 {
		ss.window = min(ss.window, n)
	}
	if n := p.Properties.MaximumPacketSize; n > 0 && n < wire.MaxMQTTBytes {
		ss.mostBytes = int(n)
	}
	ss.epoch = epochProperty(p.Properties.User)
	ss.current = ss.epoch > 0
	if p.Connect.WillFlag {
		ss.will = &mqtt.Message{Topic: strings.Clone(p.Connect.WillTopic), Payload: append([]byte(nil), p.Connect.WillPayload...)}
	}
	ss.extend()
}

// extend puts off the moment at which the session counts as dead: a whole packet has come.
func (ss *session) extend() {
	ss.silent = time.Time{}
	if ss.keepAlive > 0 {
		ss.silent = time.Now().Add(ss.keepAlive * 3 / 2)
	}
}

// welcome is the CONNACK of a device that is in.
func (ss *session) welcome(p *mqtt.Packet, assigned string) error {
	props := mqtt.Properties{
		AssignedClientID: assigned, ReceiveMaximum: wire.MQTTReceiveMaximum, MaximumPacketSize: wire.MaxMQTTBytes,
		RetainAvailableFlag: true, SubIDAvailableFlag: true, SharedSubAvailableFlag: true, User: ss.s.reconnect(),
	}
	props.SessionExpiryIntervalFlag = p.Properties.SessionExpiryInterval > 0 // to 0, which is what it is
	if asked := time.Duration(p.Connect.Keepalive) * time.Second; asked != ss.keepAlive {
		props.ServerKeepAlive, props.ServerKeepAliveFlag = uint16(ss.keepAlive/time.Second), true
	}
	return ss.connack(acceptedHere, &props)
}

func (ss *session) connack(code byte, props *mqtt.Properties) error {
	p := mqtt.Packet{ProtocolVersion: ss.version, ReasonCode: code}
	p.FixedHeader.Type = mqtt.TypeConnack
	if props != nil {
		p.Properties = *props
	}
	return ss.say(&p)
}

// turnAway answers CONNECT with a refusal, in the words of the version, and returns an error that ends
// the session without another word.
func (ss *session) turnAway(why error) error {
	code := connectReason(why)
	version := ss.version
	if version == mqtt.Version5 {
		props := mqtt.Properties{ReasonString: ss.s.reasonText(why), User: append(ss.s.reconnect(), codeProperty(why)...)}
		_ = ss.connack(byte(code), &props)
	} else {
		_ = ss.connack(oldReason(code), nil)
	}
	ss.s.cfg.Log.Debug("link: CONNECT refused", "error", why, logAttr(ss.conn))
	ss.version = 0 // it was never in
	return io.EOF
}

// connectReason is the reason code for why a device isn't let in.
func connectReason(err error) mqtt.Reason {
	if e, ok := errors.AsType[*mqtt.PacketError](err); ok {
		return e.Code
	}
	switch {
	case errors.Is(err, fault.Unauthorized), errors.Is(err, fault.Forbidden):
		return mqtt.NotAuthorized
	case errors.Is(err, fault.TooMany):
		return mqtt.ConnectionRateExceeded
	}
	return mqtt.ServerUnavailable
}

// oldReason is the return code of 3.1.1 for a reason of 5.
func oldReason(code mqtt.Reason) byte {
	switch code {
	case mqtt.ClientIDInvalid:
		return refusedID
	case mqtt.ServerUnavailable, mqtt.ConnectionRateExceeded, mqtt.ServerBusy:
		return refusedServer
	}
	return refusedOther
}

// strangerAtMQTT counts a refused certificate for its address, as requests are.
func (s *Server) strangerAtMQTT(c *conn, err error) error {
	if wait := s.strange.take(c.RemoteAddr().String()); wait > 0 {
		return errTooMany(wait)
	}
	return err
}

// pace holds a device to its rate, which it shares with HTTPS: until its turn comes, nothing is read from
// its connection. It returns false when the server shuts down.
func (ss *session) pace(num int64) bool {
	for {
		wait := ss.s.doors.allow(num)
		if wait <= 0 {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ss.s.stopping.Done():
			timer.Stop()
			return false
		}
	}
}

// join notes a session; old is the one whose place it takes, by its client identifier or because the
// device has too many. It returns false when the device was revoked since it was identified.
func (d *doors) join(ss *session, num int64, identified time.Time) (old *session, joined bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at, ok := d.revoked[num]; ok && !at.Before(identified) {
		return nil, false
	}
	p := d.party(num)
	for i, other := range p.sessions {
		if other.clientID == ss.clientID {
			old = other
			p.sessions = append(p.sessions[:i:i], p.sessions[i+1:]...)
			break
		}
	}
	if len(p.sessions) >= wire.MaxMQTTConnections {
		old = p.sessions[0] // the oldest: most likely one whose end nobody has noticed
		p.sessions = append(p.sessions[:0:0], p.sessions[1:]...)
	}
	p.sessions = append(p.sessions[:len(p.sessions):len(p.sessions)], ss)
	ss.conn.num = num
	d.known(ss.conn)
	d.sessions++
	return old, true
}

// part forgets a session, and tells whether it had joined.
func (d *doors) part(ss *session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ss.conn.num == 0 {
		return false
	}
	d.sessions--
	p := d.parties[ss.conn.num]
	if p == nil {
		return true
	}
	p.last = d.cfg.Now()
	for i, other := range p.sessions {
		if other == ss {
			p.sessions = append(p.sessions[:i:i], p.sessions[i+1:]...)
			break
		}
	}
	return true
}

// allow takes one packet from the device's rate and returns how long to wait for it, 0 when it may pass.
func (d *doors) allow(num int64) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return take(d.party(num).limit, d.cfg.Now())
}
