package link

import (
	"context"
	"errors"
	"io"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/mqtt"
	"steward/internal/wire"
)

// act handles a packet of a device that is in.
func (ss *session) act(p *mqtt.Packet) error {
	ss.extend()
	ours, err := ss.acknowledged(p)
	if err != nil || ours {
		return err
	}
	if !ss.pace(ss.conn.num) {
		return errStopping
	}
	if now := time.Now(); now.Sub(ss.alive) > aliveEvery {
		ss.alive = now
		ss.s.cfg.Presence.Alive(ss.device())
		if now.Sub(ss.judged) > judgeEvery {
			if err := ss.judgeAgain(); err != nil {
				return err
			}
		}
	}
	switch p.FixedHeader.Type {
	case mqtt.TypePublish:
		return ss.publish(p)
	case mqtt.TypePubrel:
		return ss.release(p)
	case mqtt.TypeSubscribe:
		return ss.subscribe(p)
	case mqtt.TypeUnsubscribe:
		return ss.unsubscribe(p)
	case mqtt.TypePingreq:
		return ss.answer(mqtt.TypePingresp, 0, mqtt.Success, "")
	case mqtt.TypeDisconnect:
		return ss.goodbye(p)
	case mqtt.TypeConnect:
		return &mqtt.PacketError{Code: mqtt.ProtocolError, Detail: "a second CONNECT"}
	}
	return &mqtt.PacketError{Code: mqtt.ProtocolError, Detail: "a packet that only servers send"}
}

// acknowledged handles PUBACK, which costs the device nothing of its rate as long as something was on its
// way; and says whether the packet was one.
func (ss *session) acknowledged(p *mqtt.Packet) (bool, error) {
	if p.FixedHeader.Type != mqtt.TypePuback {
		return false, nil
	}
	ss.mu.Lock()
	var known bool
	ss.onWay, known = without(ss.onWay, p.PacketID)
	more := ss.more && len(ss.queue) == 0
	ss.mu.Unlock()
	if !known && !ss.pace(ss.conn.num) {
		return true, errStopping
	}
	if more {
		ss.s.push.command(ss.conn.num)
	}
	if ss.ready() {
		return true, ss.flush()
	}
	return true, nil
}

// answer writes a packet that acknowledges another.
func (ss *session) answer(kind mqtt.Type, id uint16, reason mqtt.Reason, text string) error {
	p := mqtt.Packet{PacketID: id}
	p.FixedHeader.Type = kind
	if ss.version == mqtt.Version5 {
		p.ReasonCode, p.Properties.ReasonString = byte(reason), text
	}
	return ss.say(&p)
}

// goodbye is DISCONNECT: the will goes with it, unless the device asks for it.
func (ss *session) goodbye(p *mqtt.Packet) error {
	if mqtt.Reason(p.ReasonCode) != mqtt.DisconnectWithWill {
		ss.will = nil
	}
	ss.close("the device said goodbye", mqtt.Success)
	return io.EOF
}

// judgeAgain ends the session when the certificate no longer counts. An error of the database does not.
func (ss *session) judgeAgain() error {
	_, err := ss.judge()
	if isRefusal(err) {
		return ss.expel(err)
	}
	if err == nil {
		ss.judged = time.Now()
	}
	return nil
}

func isRefusal(err error) bool {
	return errors.Is(err, fault.Unauthorized) || errors.Is(err, fault.Forbidden)
}

// expel ends the session of a device that may not speak any more.
func (ss *session) expel(why error) error {
	return &mqtt.PacketError{Code: mqtt.NotAuthorized, Detail: ss.s.reasonText(why)}
}

// publish takes a message. PUBACK or PUBREC comes after the commit, with the reason when it was refused for
// good. When it could not be taken now, a client of MQTT 5 learns that by the reason, and one of 3.1.1, which
// knows no reasons, loses its connection without an acknowledgement, so that it sends the message again.
func (ss *session) publish(p *mqtt.Packet) error {
	if err := ss.acceptable(p); err != nil {
		return err
	}
	twice := p.FixedHeader.Qos == 2
	if twice && contains(ss.released, p.PacketID) {
		return ss.answer(mqtt.TypePubrec, p.PacketID, mqtt.Success, "") // it was taken already
	}
	if twice && len(ss.released) >= wire.MQTTReceiveMaximum {
		return &mqtt.PacketError{Code: mqtt.ReceiveMaximumExceeded, Detail: "too many messages of QoS 2 wait for PUBREL"}
	}
	err := ss.take(p.TopicName, p.Payload, p.Properties.CorrelationData)
	if errors.Is(err, errStopping) || errors.Is(err, errExpelled) {
		return err
	}
	reason, text := mqtt.Success, ""
	if err != nil {
		problem := ss.s.problemOf(ss.s.base, err, p.TopicName)
		ss.problem(p.TopicName, p.Properties.CorrelationData, problem)
		if reason, text = publishReason(err), problem.Detail; ss.version != mqtt.Version5 {
			if !forGood(err) {
				_ = ss.flush()
				return &mqtt.PacketError{Code: reason, Detail: "a message could not be taken: " + text}
			}
			reason = mqtt.Success // so that it isn't sent again; down/problem has said it
		}
	}
	switch p.FixedHeader.Qos {
	case 1:
		return ss.answer(mqtt.TypePuback, p.PacketID, reason, text)
	case 2:
		if !reason.Failed() {
			ss.released = append(ss.released, p.PacketID)
		}
		return ss.answer(mqtt.TypePubrec, p.PacketID, reason, text)
	}
	if ss.ready() {
		return ss.flush()
	}
	return nil
}

// acceptable refuses what CONNACK has said there isn't. 3.1.1 has no words for it: there a message that
// asks to be retained is one like any other, and one for another device's topic ends the connection.
func (ss *session) acceptable(p *mqtt.Packet) error {
	if p.Properties.TopicAliasFlag {
		return &mqtt.PacketError{Code: mqtt.TopicAliasInvalid, Detail: "there are no topic aliases"}
	}
	if p.FixedHeader.Retain && ss.version == mqtt.Version5 {
		return &mqtt.PacketError{Code: mqtt.RetainNotSupported, Detail: "nothing is retained here"}
	}
	if _, err := ss.address(p.TopicName); err != nil && ss.version != mqtt.Version5 && mqtt.ReasonOf(err) == mqtt.NotAuthorized {
		return err
	}
	return nil
}

// release is PUBREL, the end of a QoS 2 message (section 4.3.3).
func (ss *session) release(p *mqtt.Packet) error {
	var known bool
	ss.released, known = without(ss.released, p.PacketID)
	reason := mqtt.Success
	if !known {
		reason = mqtt.PacketIDNotFound
	}
	return ss.answer(mqtt.TypePubcomp, p.PacketID, reason, "")
}

var errExpelled = errors.New("the device may not speak any more")

// take hands a message to its room and returns after the commit.
func (ss *session) take(topic string, payload, correlation []byte) error {
	to, err := ss.address(topic)
	if err != nil {
		return err
	}
	d, err := ss.judge()
	if err != nil {
		if isRefusal(err) {
			ss.close(ss.s.reasonText(err), mqtt.NotAuthorized)
			return errExpelled
		}
		return err
	}
	ss.judged = time.Now()
	ctx, cancel := context.WithTimeout(ss.s.base, takeTime)
	defer cancel()
	select {
	case ss.s.busy <- struct{}{}:
		defer func() { <-ss.s.busy }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return ss.up(ctx, d, to, payload, correlation)
}

// takeTime bounds the handling of a message.
const takeTime = time.Minute

// publishWill hands over the will of a session that ended without a goodbye (section 3.1.2.5).
func (ss *session) publishWill(w *mqtt.Message) {
	if err := ss.take(w.Topic, w.Payload, nil); err != nil && !errors.Is(err, errExpelled) {
		ss.s.cfg.Log.Warn("link: a will was lost", "device.id", string(ss.id), "topic", w.Topic, "error", err)
	}
}

// publishReason is the reason code for why a message was not taken.
func publishReason(err error) mqtt.Reason {
	if e, ok := errors.AsType[*mqtt.PacketError](err); ok {
		return e.Code
	}
	switch {
	case errors.Is(err, fault.NotFound):
		return mqtt.TopicNameInvalid
	case errors.Is(err, fault.Forbidden), errors.Is(err, fault.Unauthorized):
		return mqtt.NotAuthorized
	case errors.Is(err, errBadRequest), errors.Is(err, fault.TooLarge), errors.Is(err, fault.Unprocessable):
		return mqtt.PayloadFormatInvalid
	case errors.Is(err, fault.Conflict), errors.Is(err, fault.Precondition):
		return mqtt.UnspecifiedError
	case errors.Is(err, fault.TooMany), isFull(err):
		return mqtt.QuotaExceeded
	}
	return mqtt.ImplementationError
}

// forGood tells whether sending the same message again would be refused again.
func forGood(err error) bool {
	reason := publishReason(err)
	return reason != mqtt.QuotaExceeded && reason != mqtt.ImplementationError
}

// subscribe grants what is the device's own, and then sends what is open for it.
func (ss *session) subscribe(p *mqtt.Packet) error {
	if len(p.Properties.SubscriptionIdentifier) > 0 {
		return &mqtt.PacketError{Code: mqtt.SubscriptionIDsRefused, Detail: "there are no subscription identifiers"}
	}
	ack := mqtt.Packet{PacketID: p.PacketID}
	ack.FixedHeader.Type = mqtt.TypeSuback
	var desired, commands bool
	for _, f := range p.Filters {
		code, name := ss.grant(f)
		ack.ReasonCodes = append(ack.ReasonCodes, code)
		desired = desired || name == downDesired || name == downAll || name == downOne
		commands = commands || name == downCommand || name == downAll || name == downOne
	}
	if err := ss.note(&ack); err != nil {
		return err
	}
	if desired {
		ss.openDesired()
	}
	if commands {
		ss.openCommands()
	}
	return ss.flush()
}

// grant returns the code of one filter for SUBACK, and its name when it was granted.
func (ss *session) grant(f mqtt.Subscription) (byte, downName) {
	own, ok := filterOf(string(ss.id), f.Filter)
	if !ok {
		reason := mqtt.NotAuthorized
		if len(f.Filter) > 6 && f.Filter[:7] == "$share/" {
			reason = mqtt.SharedNotSupported
		}
		if ss.version != mqtt.Version5 {
			reason = mqtt.UnspecifiedError // 3.1.1 has one code for all failures
		}
		return byte(reason), downNames
	}
	qos := min(f.Qos, 1)
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if !ss.subs.set(own, qos) {
		reason := mqtt.QuotaExceeded
		if ss.version != mqtt.Version5 {
			reason = mqtt.UnspecifiedError
		}
		return byte(reason), downNames
	}
	return qos, own.name
}

// openDesired sends the desired state, the first time only if it is newer than what the device has said in
// CONNECT to have.
func (ss *session) openDesired() {
	if ss.current {
		ss.current = false
		ss.s.push.desired(ss.conn.num) // which looks at many together
		return
	}
	if err := ss.sendDesired(); err != nil {
		ss.s.cfg.Log.Warn("link: desired state upon subscription", "device.id", string(ss.id), "error", err)
		ss.s.push.again(ss.conn.num)
	}
}

// sendDesired queues the desired state as it is now.
func (ss *session) sendDesired() error {
	d, err := ss.judge()
	if err != nil {
		return err
	}
	envelope, epoch, err := ss.s.cfg.Desired.Envelope(ss.s.base, d)
	if err != nil {
		return err
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.subs.wants(downDesired) {
		ss.pending = &wire.Sealed{Num: d.Num, Epoch: epoch, Envelope: envelope}
	}
	return nil
}

func (ss *session) openCommands() {
	if ss.s.cfg.Commands == nil {
		return
	}
	ss.mu.Lock()
	ss.commands = nil // upon subscription, what waits is sent again
	ss.mu.Unlock()
	d, err := ss.judge()
	if err == nil {
		err = ss.sendCommands(d)
	}
	if err != nil {
		ss.s.cfg.Log.Warn("link: commands upon subscription", "device.id", string(ss.id), "error", err)
		ss.s.push.command(ss.conn.num)
	}
}

// sendCommands sends the commands that wait and that this session has not sent.
func (ss *session) sendCommands(d device.Device) error {
	waiting, err := ss.s.cfg.Commands.Waiting(ss.s.base, d)
	if err != nil {
		return err
	}
	ss.command(waiting)
	return nil
}

// unsubscribe answers UNSUBSCRIBE.
func (ss *session) unsubscribe(p *mqtt.Packet) error {
	ack := mqtt.Packet{PacketID: p.PacketID}
	ack.FixedHeader.Type = mqtt.TypeUnsuback
	ss.mu.Lock()
	for _, f := range p.Filters {
		code := mqtt.NoSubscriptionExisted
		if own, ok := filterOf(string(ss.id), f.Filter); ok && ss.subs.unset(own) {
			code = mqtt.Success
		}
		ack.ReasonCodes = append(ack.ReasonCodes, byte(code))
	}
	ss.mu.Unlock()
	return ss.say(&ack)
}
