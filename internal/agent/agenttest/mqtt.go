package agenttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"

	"github.com/coder/websocket"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// endpoint is one MQTT connection. A message is handled as the request that it stands for, so that the
// hooks (Refuse, Cut) and counters see both ways alike; CONNECT is a request for wire.PathMQTT.
type endpoint struct {
	s    *Server
	conn net.Conn
	tls  *tls.ConnectionState
	id   string // the client's

	mu sync.Mutex // held while a packet is written
	n  uint16     // packet identifier of what was sent last
}

// WebSockets counts connections by WebSocket since the start.
func (s *Server) WebSockets() int { return s.Calls("WebSocket") }

// Streams counts living MQTT connections.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// DropStreams cuts every MQTT connection.
func (s *Server) DropStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := range s.streams {
		_ = e.conn.Close()
	}
}

// EpochsAtConnect lists the epochs that devices said that they have.
func (s *Server) EpochsAtConnect() map[int64]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.epochs)
}

// HTTPConnections counts the living connections that are not MQTT's.
func (s *Server) HTTPConnections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// watch counts connections and how their handshakes went.
func (s *Server) watch(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.conns[conn] = true
	case http.StateClosed, http.StateHijacked:
		delete(s.conns, conn)
	}
}

// shaken counts a handshake.
func (s *Server) shaken(state tls.ConnectionState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind := "full handshake"
	if state.DidResume {
		kind = "resumption"
	}
	s.calls[kind]++
	return nil
}

// Disconnect ends every MQTT connection with a reason.
func (s *Server) Disconnect(reason mqtt.Reason, properties ...mqtt.UserProperty) {
	s.mu.Lock()
	var all []*endpoint
	for e := range s.streams {
		all = append(all, e)
	}
	s.mu.Unlock()
	for _, e := range all {
		e.disconnect(reason, properties...)
	}
}

// Command pushes a command to every MQTT connection; devices by HTTPS fetch it. It is given again until
// there is a result.
func (s *Server) Command(c wire.RemoteCommand) {
	s.mu.Lock()
	s.commands = append(s.commands, c)
	close(s.woken)
	s.woken = make(chan struct{})
	s.mu.Unlock()
}

// Result returns what was last sent for the command, and whether there is one.
func (s *Server) Result(id string) (wire.RemoteResult, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, has := s.results[id]
	return r, has
}

// Events returns the events so far.
func (s *Server) Events() []wire.DeviceEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]wire.DeviceEvent(nil), s.events...)
}

// waitingCommands are those without a result; the lock is held.
func (s *Server) waitingCommands() []wire.RemoteCommand {
	var out []wire.RemoteCommand
	for _, c := range s.commands {
		if _, done := s.results[c.ID]; !done {
			out = append(out, c)
		}
	}
	return out
}

// webSocket goes over from HTTP to MQTT.
func (s *Server) webSocket(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.ALPNMQTT}})
	if err != nil {
		return
	}
	ws.SetReadLimit(-1)
	s.mu.Lock()
	s.calls["WebSocket"]++
	s.mu.Unlock()
	s.stream(websocket.NetConn(context.Background(), ws, websocket.MessageBinary), r.TLS)
}

// stream serves one connection.
func (s *Server) stream(conn net.Conn, state *tls.ConnectionState) {
	defer func() { _ = conn.Close() }()
	e := &endpoint{s: s, conn: conn, tls: state}
	var p mqtt.Packet
	if mqtt.Read(conn, mqtt.Version5, wire.MaxMQTTBytes, &p) != nil || p.FixedHeader.Type != mqtt.TypeConnect {
		return
	}
	e.id = p.Connect.ClientIdentifier
	if epoch, err := strconv.ParseInt(mqtt.Property(p.Properties.User, wire.UserPropertyEpoch), 10, 64); err == nil {
		s.Do(func() { s.epochs[epoch] = true })
	}
	if !e.connack() {
		return
	}
	s.mu.Lock()
	for other := range s.streams {
		if other.id == e.id && !s.ManyKeys {
			go other.disconnect(mqtt.SessionTakenOver)
		}
	}
	s.streams[e] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.streams, e)
		s.mu.Unlock()
	}()
	gone := make(chan struct{})
	defer close(gone)
	for {
		if mqtt.Read(conn, mqtt.Version5, wire.MaxMQTTBytes, &p) != nil {
			return
		}
		switch p.FixedHeader.Type {
		case mqtt.TypeSubscribe:
			e.write(mqtt.Packet{PacketID: p.PacketID, ReasonCodes: []byte{1}}, mqtt.TypeSuback)
			go e.push(gone)
		case mqtt.TypePublish:
			if !e.published(p) {
				return
			}
		case mqtt.TypePingreq:
			s.count("PINGREQ")
			if s.mute() {
				continue
			}
			e.write(mqtt.Packet{}, mqtt.TypePingresp)
		case mqtt.TypeDisconnect:
			return
		}
	}
}

func (s *Server) count(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[key]++
}

func (s *Server) mute() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Mute
}

// ask makes a request of a message and returns the answer; cut says that the connection is to end.
func (e *endpoint) ask(method, path string, header http.Header, body []byte) (res *httptest.ResponseRecorder, cut bool) {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.TLS = e.tls
	for k, v := range header {
		r.Header[k] = v
	}
	res = httptest.NewRecorder()
	defer func() {
		if recover() != nil { // http.ErrAbortHandler
			cut = true
		}
	}()
	e.s.serve(res, r)
	return res, false
}

func (e *endpoint) connack() bool {
	res, cut := e.ask(http.MethodConnect, wire.PathMQTT, nil, nil)
	if cut || e.s.mute() {
		return false
	}
	e.s.mu.Lock()
	p := mqtt.Packet{ReasonCode: byte(e.s.Connack)}
	p.Properties.User = e.s.Properties
	e.s.mu.Unlock()
	switch {
	case res.Code == http.StatusUnauthorized, res.Code == http.StatusForbidden:
		p.ReasonCode = byte(mqtt.NotAuthorized)
	case res.Code >= 400:
		p.ReasonCode = byte(mqtt.ServerBusy)
	}
	p.Properties.ReceiveMaximum = wire.MQTTReceiveMaximum
	e.write(p, mqtt.TypeConnack)
	return p.ReasonCode == 0
}

func (e *endpoint) write(p mqtt.Packet, t mqtt.Type) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.ProtocolVersion, p.FixedHeader.Type = mqtt.Version5, t
	_ = mqtt.Write(e.conn, &p) // a peer that has gone is noticed by the reader
}

func (e *endpoint) disconnect(reason mqtt.Reason, properties ...mqtt.UserProperty) {
	p := mqtt.Packet{ReasonCode: byte(reason)}
	p.Properties.User = properties
	e.write(p, mqtt.TypeDisconnect)
	_ = e.conn.Close()
}

// send publishes with QoS 1 below down.
func (e *endpoint) send(name string, correlation, body []byte) {
	e.mu.Lock()
	e.n = e.n%60000 + 1
	n := e.n
	e.mu.Unlock()
	p := mqtt.Packet{TopicName: wire.Topic(wire.Me, wire.TopicDown, name), Payload: body, PacketID: n}
	p.FixedHeader.Qos = 1
	p.Properties.CorrelationData = correlation
	e.write(p, mqtt.TypePublish)
}

// published handles a message; false ends the connection.
func (e *endpoint) published(p mqtt.Packet) bool {
	_, direction, name, rest, ok := wire.ParseTopic(p.TopicName)
	if !ok || direction != wire.TopicUp || p.FixedHeader.Qos != 1 {
		e.s.t.Errorf("message to %s with QoS %d", p.TopicName, p.FixedHeader.Qos)
		return false
	}
	if e.s.mute() {
		return true
	}
	method, path, answer := http.MethodPost, "", ""
	switch name {
	case wire.TopicReport:
		path, answer = wire.PathReport, name
	case wire.TopicDocument:
		method, path = http.MethodPut, wire.PathDocuments+rest
	case wire.TopicFetch:
		method, path, answer = http.MethodGet, wire.PathDocuments+rest, wire.TopicDocument+"/"+rest
	case wire.TopicDesired:
		method, path, answer = http.MethodGet, wire.PathDesired, name
	case wire.TopicMetrics:
		path = wire.PathMetrics
	case wire.TopicEvent:
		path = wire.PathEvents
	case wire.TopicResult:
		path = wire.PathCommands + "/" + rest
	}
	res, cut := e.ask(method, path, nil, p.Payload)
	if cut {
		return false
	}
	ack := mqtt.Packet{PacketID: p.PacketID}
	switch {
	case res.Code >= 300:
		e.problem(p.TopicName, p.Properties.CorrelationData, res)
		ack.ReasonCode = byte(mqtt.ImplementationError)
	case answer != "":
		e.send(answer, p.Properties.CorrelationData, res.Body.Bytes())
	}
	e.s.count("message " + name)
	e.write(ack, mqtt.TypePuback)
	return true
}

func (e *endpoint) problem(topic string, correlation []byte, res *httptest.ResponseRecorder) {
	m := wire.MessageProblem{Topic: topic}
	_ = json.Unmarshal(res.Body.Bytes(), &m.Problem)
	m.Status = res.Code
	body, err := json.Marshal(m)
	if err != nil {
		e.s.t.Error(err)
	}
	e.send(wire.TopicProblem, correlation, body)
}

// push sends what the device should know: the envelope after the subscription and after each change,
// and the commands that have no result.
func (e *endpoint) push(gone <-chan struct{}) {
	epoch := int64(-1)
	given := map[string]bool{}
	for {
		e.s.mu.Lock()
		now, woken, hold := e.s.epoch, e.s.woken, e.s.HoldPush
		commands := e.s.waitingCommands()
		e.s.mu.Unlock()
		if now != epoch && !hold {
			res, cut := e.ask("PUSH", wire.PathDesired, http.Header{"If-None-Match": {`"` + strconv.FormatInt(epoch, 10) + `"`}}, nil)
			switch {
			case cut:
				_ = e.conn.Close()
			case res.Code == http.StatusOK:
				e.send(wire.TopicDesired, nil, res.Body.Bytes())
			case res.Code >= 400:
				e.problem(wire.Topic(wire.Me, wire.TopicDown, wire.TopicDesired), nil, res)
			}
			epoch = now
		}
		for _, c := range commands {
			if body, err := json.Marshal(c); err == nil && !given[c.ID] {
				given[c.ID] = true
				e.send(wire.TopicCommand, nil, body)
			}
		}
		select {
		case <-woken:
		case <-gone:
			return
		}
	}
}

// results stores what became of a command.
func (s *Server) result(w http.ResponseWriter, r *http.Request) {
	var result wire.RemoteResult
	id := strings.TrimPrefix(r.URL.Path, wire.PathCommands+"/")
	if err := json.NewDecoder(r.Body).Decode(&result); err != nil || result.State == "" || result.At.IsZero() {
		writeProblem(w, wire.Problem{Status: 422, Title: "no result"})
		return
	}
	s.Do(func() { s.results[id] = result })
	w.WriteHeader(http.StatusNoContent)
}

// list answers with the commands that wait.
func (s *Server) list(w http.ResponseWriter) {
	s.mu.Lock()
	list := wire.RemoteCommands{Commands: s.waitingCommands()}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

// event stores an event.
func (s *Server) event(w http.ResponseWriter, r *http.Request) {
	var e wire.DeviceEvent
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil || e.Name == "" || e.Time.IsZero() {
		writeProblem(w, wire.Problem{Status: 422, Title: "no event"})
		return
	}
	s.Do(func() { s.events = append(s.events, e) })
	w.WriteHeader(http.StatusNoContent)
}
