package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"steward/internal/agent/disposal"
	"steward/internal/agent/host"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/agent/monitoring"
	"steward/internal/agent/provisioning"
	"steward/internal/agent/remote"
	"steward/internal/wire"
)

// ErrDecommissioned is returned by Run when the device was disposed of, now or before: the state
// directory holds a tombstone and will never enroll again.
var ErrDecommissioned = disposal.ErrDecommissioned

// Config of an Agent. StateDir and Host are required; all else may be its zero value.
type Config struct {
	StateDir string // made with mode 0700; one agent at a time
	// Server is https://host:port; empty takes the one of the start before.
	Server string
	// Token enrolls the device; empty takes the one of the start before, if it was not used.
	Token string
	// Serial is the device's serial number; empty takes the one of the start before, else the
	// host's.
	Serial string
	Host   host.Host
	Log    *slog.Logger // nil discards
	// Now is the machine's clock; nil means time.Now.
	Now func() time.Time
	// ReleaseRoot is the TUF root.json that releases are verified from; nil takes the one of the
	// trust document that the token names.
	ReleaseRoot []byte
	Version     string // of the program
	// ComponentsDir is where releases install their components; "" means "components" in StateDir.
	ComponentsDir string
	// HealthPause is the time between two rounds of a release's health commands; 0 means 2 s.
	HealthPause time.Duration
	// ReportInterval is the longest time between two reports; 0 leaves it to the server (60 s).
	ReportInterval time.Duration
	// Link is how messages may travel; "" takes the mode of the start before, else link.ModeAuto.
	Link link.Mode
	// KeepAlive is the time without a word after which an MQTT connection is tested; 0 means five
	// minutes, and the server may ask for less.
	KeepAlive time.Duration
	// PollWait is how long the server may hold a request for the desired state; 0 means five
	// minutes.
	PollWait time.Duration
	// Retry bounds the waits after failures; zero values mean 1 s to 5 min.
	Retry link.Backoff
	// BetterRetry bounds the waits before a better way than HTTPS is tried again; zero values mean 15
	// min to 6 h.
	BetterRetry link.Backoff
	// SlowRetry is the silence after a refusal that only people can lift; 0 means an hour.
	SlowRetry time.Duration
	// Dial replaces the net's dialer; nil keeps it. Simulated devices have a net of their own.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// FactsInterval is the time between two readings of the machine's facts; 0 means five minutes.
	FactsInterval time.Duration
	// Crash is called before each step that reaches the disk; see journal.Config. For tests.
	Crash func(point string) error
}

// Agent is one device's end of Steward. A process may run thousands of them, each with its own Config.
type Agent struct {
	cfg      Config
	instance string // random, made once with the state directory
	boot     string // random, made at each start
	started  time.Time
	unclean  string // since when the agent ran that did not end in good order; empty when it did

	journal      *journal.Journal
	clock        *clock
	client       *link.Client
	provisioning *provisioning.Room
	monitoring   *monitoring.Room
	disposal     *disposal.Room
	remote       *remote.Room
	rooms        []Room
	releaseTrust string // "pinned", "token" or "none"

	quiesce chan struct{} // closed when all rooms but disposal must stop
	stopped chan struct{} // closed when they have
	changed chan struct{} // holds one when something is to be reported
	full    fullReports

	desired  desiredState
	problems problems
	status   statusBoard
	contact  sync.Mutex // held while the state of the link is noted and written
}

// New checks the Config; nothing is read or written before Run.
func New(cfg Config) (*Agent, error) {
	if cfg.StateDir == "" {
		return nil, errors.New("no state directory was given (--state)")
	}
	if cfg.Host == nil {
		return nil, errors.New("no host was given")
	}
	if cfg.Token != "" {
		if _, err := wire.ParseEnrollmentToken(cfg.Token); err != nil {
			return nil, err
		}
	}
	if _, err := link.ParseMode(string(cfg.Link)); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	return &Agent{
		cfg: cfg, boot: randomHex(), started: time.Now(),
		changed: make(chan struct{}, 1),
	}, nil
}

func randomHex() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return hex.EncodeToString(b)
}

// Run enrolls if needed and serves until ctx ends, then returns nil. It returns ErrDecommissioned after
// a disposal, ErrLocked, or an error that makes any work impossible; nothing of the network is one.
func (a *Agent) Run(ctx context.Context) error {
	if err := os.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	unlock, err := lockState(a.cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if done, err := a.decommissioned(ctx); done || err != nil {
		return err
	}
	if err := a.open(); err != nil {
		return err
	}
	defer a.close()
	if err := a.enroll(ctx); err != nil || ctx.Err() != nil {
		return ignoreEnd(ctx, err)
	}
	for {
		if err := a.furnish(ctx); err != nil {
			return err
		}
		if err = a.serve(ctx); !errors.Is(err, errEnrolledAnew) {
			break
		}
		a.cfg.Log.Info("enrolled anew: beginning with the new identity and trust")
	}
	if errors.Is(err, ErrDecommissioned) {
		a.status.bury()
		return err
	}
	a.status.write(a.summary())
	err = ignoreEnd(ctx, err)
	if err == nil {
		a.endClean()
	}
	return err
}

// ignoreEnd makes the end of ctx no error.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
		return nil
	}
	return err
}

// decommissioned finishes what a kill may have left of a disposal.
func (a *Agent) decommissioned(ctx context.Context) (bool, error) {
	stone, err := disposal.ReadTombstone(a.cfg.StateDir)
	if err != nil || stone == nil {
		return false, err
	}
	j, err := journal.Open(journal.Config{Dir: a.cfg.StateDir, Crash: a.cfg.Crash})
	if err != nil {
		return true, err
	}
	if err := disposal.Finish(ctx, a.cfg.StateDir, j); err != nil {
		return true, err
	}
	return true, fmt.Errorf("%w by disposal order %s", ErrDecommissioned, stone.Order)
}

// open reads the state directory.
func (a *Agent) open() (err error) {
	a.journal, err = journal.Open(journal.Config{Dir: filepath.Join(a.cfg.StateDir, journalDir), Crash: a.cfg.Crash})
	if err != nil {
		return err
	}
	a.problems.set("journal", a.journal.Damage())
	if err := a.settle(); err != nil {
		return err
	}
	a.clock = newClock(a.cfg.Now, a.journal)
	a.status.path = filepath.Join(a.cfg.StateDir, StatusFile)
	a.beginRun()
	var remembered string
	_, _ = a.journal.Get(keyVia, &remembered) // an unreadable value counts as none
	a.client, err = link.New(link.Config{
		Server: a.cfg.Server, Version: a.cfg.Version, Now: a.clock.Now, Seen: a.seen, SlowRetry: a.cfg.SlowRetry, Dial: a.cfg.Dial,
		Mode: a.cfg.Link, KeepAlive: a.cfg.KeepAlive, Retry: a.cfg.Retry, Better: a.cfg.BetterRetry,
		Remembered: remembered, Remember: a.rememberVia, Commands: a.takeCommands, Log: a.cfg.Log,
		Connected: func() { a.contacted(nil) },
	})
	if err != nil {
		return err
	}
	a.provisioning, err = provisioning.New(provisioning.Config{
		Dir: a.cfg.StateDir, Journal: a.journal, Client: a.client, Serial: a.cfg.Serial, Token: a.cfg.Token,
		Now: a.clock.Now, ClockHint: a.clock.Hint, Log: a.cfg.Log, Changed: a.change,
	})
	return err
}

func (a *Agent) close() {
	a.client.Close()
	_ = a.journal.Close() // every write was synced
}

// rememberVia keeps the way that works for the next start.
func (a *Agent) rememberVia(via string) {
	if err := a.journal.Put(keyVia, via); err != nil {
		a.cfg.Log.Debug("way of the link not stored", "error", err)
	}
}

// takeCommands hands commands to their room, once there is one.
func (a *Agent) takeCommands(commands []wire.RemoteCommand) {
	if a.remote != nil {
		a.remote.Take(commands)
	}
}

// seen is called after each verified answer; zero when it does not tell the server's time.
func (a *Agent) seen(serverTime time.Time) {
	if !serverTime.IsZero() {
		a.clock.Seen(serverTime)
	}
	a.status.contact(a.clock.Now())
}

// Files and directories of the state directory. Their names are part of no contract.
const (
	journalDir    = "journal"
	updateDir     = "update"
	componentsDir = "components"
	keyServer     = "agent/server"
	keySerial     = "agent/serial"
	keyToken      = "agent/token"
	keyInstance   = "agent/instance"
	keyLink       = "agent/link"
	keyVia        = "agent/via"     // the way that worked last
	keyRunning    = "agent/running" // since when an agent runs; absent after a good end
)

// settle joins what was given with what was given before, and stores it.
func (a *Agent) settle() error {
	if a.cfg.Serial == "" {
		if found, err := a.journal.Get(keySerial, &a.cfg.Serial); err != nil || !found {
			identity := a.cfg.Host.Identity(context.Background())
			a.cfg.Serial = identity.Serial
			if identity.Fallback {
				a.problems.set("serial", "the machine shows no serial number; "+identity.Serial+" was made from its "+identity.Source)
			}
		}
	}
	mode := string(a.cfg.Link)
	for key, value := range map[string]*string{
		keyServer: &a.cfg.Server, keyToken: &a.cfg.Token, keySerial: &a.cfg.Serial, keyInstance: &a.instance, keyLink: &mode,
	} {
		if err := a.settleOne(key, value); err != nil {
			return err
		}
	}
	a.cfg.Link = link.Mode(mode)
	if a.cfg.Server == "" {
		return errors.New("no server was given (--server https://host:port)")
	}
	return nil
}

// settleOne takes what was stored when nothing is given. What a full disk does not let be stored is told
// and counts for this start: the device stays in contact. Only the instance must not change with every
// start, since it would look like a clone.
func (a *Agent) settleOne(key string, value *string) error {
	var stored string
	if _, err := a.journal.Get(key, &stored); err != nil {
		return err
	}
	switch {
	case *value == "" && stored == "" && key == keyInstance:
		*value = randomHex()
	case *value == "":
		*value = stored
	}
	if *value == stored {
		return nil
	}
	err := a.journal.Put(key, *value)
	if err == nil || key == keyInstance {
		return err
	}
	a.problems.set("settings", "not stored for later starts: "+err.Error())
	a.cfg.Log.Warn("setting not stored for later starts", "error", err)
	return nil
}

// enroll asks for an identity until there is one. What the server refuses for good is asked again at
// most once in SlowRetry, since an operator may have made it right meanwhile.
func (a *Agent) enroll(ctx context.Context) error {
	retry := a.cfg.Retry
	for a.provisioning.NeedsToken(nil) {
		a.status.set(StateEnrolling, "")
		err := a.provisioning.Enroll(ctx)
		switch {
		case err == nil:
			// A used token is no secret any more, and its absence lets the next one count.
			return a.journal.Delete(keyToken)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, provisioning.ErrNoToken):
			a.status.set(StateBlocked, err.Error())
			a.status.write(a.summary())
			return err
		}
		wait := retry.Next(err)
		state := StateEnrolling
		if link.Stopped(err) {
			state = StateBlocked
		}
		a.cfg.Log.Warn("not enrolled", "error", err, "again_in", wait.Round(time.Second))
		a.status.set(state, err.Error())
		a.status.write(a.summary())
		if !sleep(ctx, wait) {
			return nil
		}
	}
	return nil
}

// sleep waits and tells whether ctx still lives.
func sleep(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// change asks for a report soon.
func (a *Agent) change() {
	select {
	case a.changed <- struct{}{}:
	default: // one is asked for already
	}
}
