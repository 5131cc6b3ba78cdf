package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"steward/internal/agent/disposal"
	"steward/internal/agent/link"
	"steward/internal/agent/provisioning"
)

// StatusFile is where a running agent tells `steward-agent status` how it is doing.
const StatusFile = "status.json"

// States of an agent.
const (
	StateEnrolling      = "enrolling"
	StateOnline         = "online"
	StateOffline        = "offline"
	StateBlocked        = "blocked" // refused until somebody acts
	StateDecommissioned = "decommissioned"
	StateNew            = "new" // never started
)

// Status is how an agent is doing.
type Status struct {
	State           string          `json:"state"`
	Detail          string          `json:"detail,omitempty"` // the newest error of the link
	Running         bool            `json:"running"`
	Version         string          `json:"version,omitempty"`
	Device          string          `json:"device,omitempty"`
	Serial          string          `json:"serial,omitempty"`
	Server          string          `json:"server,omitempty"`
	CertificateEnds time.Time       `json:"certificate_ends,omitzero"`
	LastContact     time.Time       `json:"last_contact,omitzero"`
	LinkMode        link.Mode       `json:"link_mode,omitempty"`   // auto, mqtt or https
	Link            string          `json:"link,omitempty"`        // mqtt, mqtt+ws or https; empty while not connected
	LinkReason      string          `json:"link_reason,omitempty"` // why there is no better one
	Epoch           int64           `json:"epoch"`
	ReleaseTrust    string          `json:"release_trust,omitempty"`
	Buffered        int             `json:"buffered_measurements"`
	Update          json.RawMessage `json:"update,omitempty"` // wire.UpdateReported
	Problems        []string        `json:"problems,omitempty"`
	Written         time.Time       `json:"written,omitzero"`
}

// statusBoard holds what Status shows and the agent does not keep elsewhere. Safe for use by several
// goroutines.
type statusBoard struct {
	path string

	mu            sync.Mutex
	state, detail string
	lastContact   time.Time
	update        json.RawMessage
	current       Status // the newest, for Status
	written       Status // the newest in the file
	buried        bool
}

func (b *statusBoard) set(state, detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state, b.detail = state, detail
}

func (b *statusBoard) contact(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastContact = at
}

func (b *statusBoard) setUpdate(body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.update = body
}

// silence ends all writing: the directory of a decommissioned device stays clear.
func (b *statusBoard) silence() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buried = true
}

// bury says that the end is reached.
func (b *statusBoard) bury() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buried = true
	b.current.State, b.current.Detail, b.current.Running = StateDecommissioned, "", false
}

// statusEvery is the time between two writes when only times and counts have changed: the file lies on
// storage that wears out.
const statusEvery = time.Minute

// write stores the status for other processes. It is no state: it is not synced, and an error (a full
// disk) costs nothing but the view.
func (b *statusBoard) write(s Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buried {
		return
	}
	b.current = s
	if b.path == "" {
		return
	}
	same := s.State == b.written.State && s.Detail == b.written.Detail && string(s.Update) == string(b.written.Update) &&
		s.Device == b.written.Device && s.Link == b.written.Link && s.LinkReason == b.written.LinkReason && s.Epoch == b.written.Epoch && fmt.Sprint(s.Problems) == fmt.Sprint(b.written.Problems)
	if same && s.Written.Sub(b.written.Written).Abs() < statusEvery {
		return
	}
	body, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return
	}
	tmp := b.path + ".new"
	if os.WriteFile(tmp, append(body, '\n'), 0o600) != nil || os.Rename(tmp, b.path) != nil {
		_ = os.Remove(tmp)
		return
	}
	b.written = s
}

// Status tells how the agent was doing at the last change of state or contact. It may be called at any
// time from any goroutine.
func (a *Agent) Status() Status {
	a.status.mu.Lock()
	defer a.status.mu.Unlock()
	s := a.status.current
	if s.State == "" {
		s.State = StateNew
	}
	return s
}

// summary is for Run's own goroutines.
func (a *Agent) summary() Status {
	a.status.mu.Lock()
	s := Status{
		State: a.status.state, Detail: a.status.detail, LastContact: a.status.lastContact.UTC(), Update: a.status.update,
	}
	a.status.mu.Unlock()
	s.Running, s.Version, s.Serial, s.Server = true, a.cfg.Version, a.cfg.Serial, a.cfg.Server
	s.Problems, s.Epoch, s.ReleaseTrust, s.Written = a.problems.list(), a.epoch(), a.releaseTrust, a.cfg.Now().UTC()
	if a.provisioning != nil {
		if identity := a.provisioning.Identity(); identity != nil {
			s.Device, s.CertificateEnds = identity.Device, identity.Certificate.NotAfter.UTC()
		}
	}
	if a.client != nil {
		way := a.client.Way()
		s.Link, s.LinkReason = way.Via, way.Why
		s.LinkMode, _ = link.ParseMode(string(a.cfg.Link)) // was checked
	}
	if a.monitoring != nil {
		s.Buffered = a.monitoring.Buffered()
	}
	return s
}

// contacted keeps the state of the link for status and log.
func (a *Agent) contacted(err error) {
	a.contact.Lock() // what is written last is what is so
	defer a.contact.Unlock()
	via := a.client.Way().Via
	switch {
	case err == nil, link.StatusOf(err) == 0 && (via == link.ViaMQTT || via == link.ViaWebSocket):
		// A connection that was lost may have been replaced before this was told.
		a.status.set(StateOnline, "")
	case link.Stopped(err):
		a.status.set(StateBlocked, err.Error())
	case link.StatusOf(err) != 0:
		a.status.set(StateOnline, err.Error())
	default:
		a.status.set(StateOffline, err.Error())
	}
	a.status.write(a.summary())
}

// ReadStatus reads the status from a state directory, of a running agent or of one that is not running.
func ReadStatus(dir string) (Status, error) {
	if stone, err := disposal.ReadTombstone(dir); err != nil {
		return Status{}, err
	} else if stone != nil {
		return Status{
			State: StateDecommissioned, Detail: "by disposal order " + stone.Order, Device: stone.Device, Serial: stone.Serial, LastContact: stone.At,
		}, nil
	}
	s := Status{State: StateNew}
	raw, err := os.ReadFile(filepath.Join(dir, StatusFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return s, fmt.Errorf("read the status: %w", err)
	default:
		if err := json.Unmarshal(raw, &s); err != nil {
			return s, fmt.Errorf("read the status: %w", err)
		}
	}
	unlock, err := lockState(dir)
	switch {
	case err == nil:
		unlock()
		s.Running, s.Link, s.LinkReason = false, "", ""
	case errors.Is(err, ErrLocked):
		s.Running = true
	case errors.Is(err, os.ErrNotExist):
		return s, fmt.Errorf("there is no agent's state in %s", dir)
	default:
		return s, err
	}
	if identity, err := provisioning.ReadIdentity(dir); err == nil && identity != nil && identity.Certificate != nil {
		s.Device, s.CertificateEnds = identity.Device, identity.Certificate.NotAfter.UTC()
	}
	return s, nil
}
