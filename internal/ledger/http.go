package ledger

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
)

const tag = "ledger"

// Routes adds the ledger's operations.
func (l *Ledger) Routes(a *httpapi.API) {
	httpapi.Register(a, httpapi.Op{ID: "list-events", Method: http.MethodGet, Path: "/events", Tag: tag, Role: httpapi.Viewer,
		Summary: "List what happened, newest first",
		Detail:  "An event appears some milliseconds after the change that it tells. Its sequence is its place in the ledger's tree."}, l.apiEvents)
	httpapi.Register(a, httpapi.Op{ID: "get-event", Method: http.MethodGet, Path: "/events/{id}", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show one event"}, l.apiEvent)
	httpapi.Register(a, httpapi.Op{ID: "get-event-proof", Method: http.MethodGet, Path: "/events/{id}/proof", Tag: tag, Role: httpapi.Viewer,
		Summary: "Prove that an event is in the ledger",
		Detail:  "The proof can be checked without the server, with the ledger's verifier key alone: steward verify FILE --ledger-key KEY."}, l.apiProof)
	httpapi.Register(a, httpapi.Op{ID: "get-checkpoint", Method: http.MethodGet, Path: "/ledger/checkpoint", Tag: tag, Role: httpapi.Viewer,
		Summary: "Show the newest signed tree head",
		Detail:  "Who keeps it can later prove that nothing before it was changed."}, l.apiCheckpoint)
	httpapi.Register(a, httpapi.Op{ID: "get-consistency", Method: http.MethodGet, Path: "/ledger/consistency", Tag: tag, Role: httpapi.Viewer,
		Summary: "Prove that the ledger only grew between two sizes"}, l.apiConsistency)
}

// EventItem is an event with the sentence that tells it to people.
type EventItem struct {
	ID       string          `json:"id"`
	Sequence int64           `json:"sequence" doc:"Place in the ledger's tree, from 0; -1 for some milliseconds until it has one"`
	At       time.Time       `json:"at"`
	Kind     string          `json:"kind" example:"device.moved"`
	Text     string          `json:"text" doc:"What happened, for people" example:"Device moved from active to retired"`
	Device   device.ID       `json:"device,omitempty"`
	Subject  string          `json:"subject,omitempty" doc:"ID of the order, release … that it is about"`
	Actor    device.Actor    `json:"actor"`
	Reason   string          `json:"reason,omitempty"`
	Data     json.RawMessage `json:"data,omitempty" doc:"The facts, an object"`
}

func (l *Ledger) item(e Event) EventItem {
	return EventItem{ID: e.ID, Sequence: e.Sequence, At: e.At, Kind: e.Kind, Text: l.Sentence(e), Device: e.Device,
		Subject: e.Subject, Actor: e.Actor, Reason: e.Reason, Data: e.Data}
}

type eventsIn struct {
	httpapi.PageIn
	Device  string    `query:"device" maxLength:"40" doc:"Only of this device: its passport"`
	Kind    []string  `query:"kind" maxItems:"20" doc:"Only these kinds (device.moved) or rooms (update)"`
	Subject string    `query:"subject" maxLength:"256" doc:"Only about this order, release …"`
	Actor   string    `query:"actor" maxLength:"256" doc:"Only by this account, device or room"`
	Since   time.Time `query:"since" doc:"Only from this time on"`
	Until   time.Time `query:"until" doc:"Only before this time"`
	After   int64     `query:"after" minimum:"0" doc:"Only with this sequence or a later one"`
	Order   string    `query:"order" enum:"newest,oldest" default:"newest"`
}

type eventsOut struct{ Body httpapi.List[EventItem] }

func (l *Ledger) apiEvents(ctx context.Context, who httpapi.Principal, in *eventsIn) (*eventsOut, error) {
	events, next, err := l.Events(ctx, l.Within(who.Scope, Filter{
		Device: device.ID(in.Device), Kinds: in.Kind, Subject: in.Subject, Actor: in.Actor, Since: in.Since, Until: in.Until,
		After: in.After, Limit: in.Limit, Cursor: in.Cursor, Newest: in.Order != "oldest",
	}))
	if err != nil {
		return nil, err
	}
	out := &eventsOut{Body: httpapi.List[EventItem]{Items: make([]EventItem, len(events)), Next: next}}
	for i, e := range events {
		out.Body.Items[i] = l.item(e)
	}
	return out, nil
}

type eventIn struct {
	ID string `path:"id" maxLength:"64"`
}

type eventOut struct{ Body EventItem }

func (l *Ledger) apiEvent(ctx context.Context, who httpapi.Principal, in *eventIn) (*eventOut, error) {
	e, err := l.ByID(ctx, who.Scope, in.ID)
	if err != nil {
		return nil, err
	}
	return &eventOut{Body: l.item(e)}, nil
}

type proofOut struct{ Body Proof }

func (l *Ledger) apiProof(ctx context.Context, who httpapi.Principal, in *eventIn) (*proofOut, error) {
	if _, err := l.ByID(ctx, who.Scope, in.ID); err != nil {
		return nil, err
	}
	p, err := l.Inclusion(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &proofOut{Body: p}, nil
}

// HeadInfo is the newest signed tree head with what it takes to check it.
type HeadInfo struct {
	Origin     string `json:"origin" doc:"Name of this ledger"`
	Size       int64  `json:"size" doc:"Number of events"`
	Root       string `json:"root" doc:"RFC 6962 root hash in base64"`
	Checkpoint string `json:"checkpoint" doc:"Signed note (c2sp.org/tlog-checkpoint)"`
	Verifier   string `json:"verifier" doc:"Public key of the signature; get it once over a way that you trust and keep it"`
}

type headOut struct{ Body HeadInfo }

func (l *Ledger) apiCheckpoint(ctx context.Context, _ httpapi.Principal, _ *struct{}) (*headOut, error) {
	info, err := l.headInfo(ctx)
	if err != nil {
		return nil, err
	}
	return &headOut{Body: info}, nil
}

func (l *Ledger) headInfo(ctx context.Context) (HeadInfo, error) {
	verifier, err := l.Verifier()
	if err != nil {
		return HeadInfo{}, fault.New(fault.Unavailable, "this ledger is not signed")
	}
	text, err := l.Checkpoint(ctx)
	if err != nil {
		return HeadInfo{}, err
	}
	c, err := OpenCheckpoint(text, verifier)
	if err != nil {
		return HeadInfo{}, err
	}
	return HeadInfo{Origin: c.Origin, Size: c.Size, Root: c.Root.String(), Checkpoint: string(text), Verifier: verifier}, nil
}

type consistencyIn struct {
	From int64 `query:"from" required:"true" minimum:"1" doc:"Size of the older tree"`
	To   int64 `query:"to" minimum:"0" doc:"Size of the newer tree; 0 means the present one"`
}

type consistencyOut struct{ Body ConsistencyProof }

func (l *Ledger) apiConsistency(ctx context.Context, _ httpapi.Principal, in *consistencyIn) (*consistencyOut, error) {
	to := in.To
	if to == 0 {
		var err error
		if to, err = l.Size(ctx); err != nil {
			return nil, err
		}
	}
	p, err := l.Consistency(ctx, in.From, to)
	if err != nil {
		return nil, err
	}
	return &consistencyOut{Body: p}, nil
}
