package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"

	"steward/internal/client"
)

const (
	orderUnits  = 5000 // of an order of `reads`, so that a bulk change labels it in one run
	readTokens  = 24   // a token may make 200 requests a second
	deepPage    = 0.6  // where in the fleet the deep page lies
	readTimeout = 30 * time.Second
	roundTime   = 20 * time.Second // of a slow kind of request
)

// read is one kind of request.
type read struct {
	name string
	page bool // of the console, in a browser's session
	path func(i int) string
}

// reads measures the main reads of API and console over a fleet that was bought, received and labelled.
func (b *bench) reads(ctx context.Context) ([]Result, error) {
	var all []Result
	err := b.withNode(ctx, func(n *node) error {
		registered, err := b.register(ctx, n)
		if err != nil {
			return err
		}
		all = append(all, registered)
		r, err := newReader(ctx, n, b.clients)
		if err != nil {
			return err
		}
		list, err := b.readList(ctx, n)
		if err != nil {
			return err
		}
		for _, kind := range list {
			row, err := b.measureRead(ctx, n, r, kind)
			if err != nil {
				return err
			}
			all = append(all, row)
		}
		return nil
	})
	return all, err
}

// register fills the server and tells what that took.
func (b *bench) register(ctx context.Context, n *node) (Result, error) {
	began, site := time.Now(), 0
	used, err := n.during(func() error {
		return n.buy(ctx, b.devices, orderUnits, func(o order) error {
			site++
			b.say("registered %d of %d", min(site*orderUnits, b.devices), b.devices)
			return n.label(ctx, o, fmt.Sprintf("site-%02d", site))
		})
	})
	if err != nil {
		return Result{}, err
	}
	seconds := time.Since(began).Seconds()
	return b.withMemory(n, Result{
		Scenario: "reads/register", Devices: b.devices, Seconds: seconds, PerSecond: float64(b.devices) / seconds,
		CPUPerDevice: milliseconds(used.server) / float64(b.devices), DatabaseCPUPerDevice: milliseconds(used.database) / float64(b.devices),
	})
}

// readList chooses what is read: devices all over the fleet, so that no page is read from a cache only.
func (b *bench) readList(ctx context.Context, n *node) ([]read, error) {
	ids, deep, err := n.sample(ctx, int(float64(b.devices)*deepPage))
	if err != nil {
		return nil, err
	}
	var orders struct {
		Items []struct{ ID string } `json:"items"`
	}
	if err := n.do(ctx, http.MethodGet, "/orders", nil, &orders); err != nil {
		return nil, err
	}
	if len(ids) == 0 || len(orders.Items) == 0 {
		return nil, errors.New("the server shows no devices or no orders")
	}
	sites := (b.devices + orderUnits - 1) / orderUnits
	id := func(i int) string { return ids[i*7919%len(ids)] }
	site := func(i int) string { return fmt.Sprintf("site-%02d", 1+i%sites) }
	prefix := func(i int) string { return fmt.Sprintf("BEN-%03d-%03d", i%sites, i*31%500) }
	fixed := func(path string) func(int) string { return func(int) string { return path } }
	return []read{
		{"devices, first page", false, fixed("/devices")},
		{"devices by stage", false, fixed("/devices?stage=received")},
		{"devices by a label", false, func(i int) string { return "/devices?selector=site%3D" + site(i) }},
		{"devices by two labels", false, func(i int) string { return "/devices?selector=ring%3Dcanary%2Csite%3D" + site(i) }},
		{"devices by a missing label", false, fixed("/devices?selector=%21ring")},
		{"devices by stage and label", false, func(i int) string { return "/devices?stage=received&selector=site%3D" + site(i) }},
		{"devices by serial prefix", false, func(i int) string { return "/devices?q=" + prefix(i) }},
		{"devices, deep page", false, fixed("/devices?cursor=" + url.QueryEscape(deep))},
		{"devices, page of 1000", false, fixed("/devices?limit=1000")},
		{"one device", false, func(i int) string { return "/devices/" + id(i) }},
		{"fleet counts", false, fixed("/fleet")},
		{"values of a label", false, fixed("/labels/values?key=site")},
		{"events of a device", false, func(i int) string { return "/events?device=" + id(i) }},
		{"ledger, newest page", false, fixed("/events")},
		{"ledger by kind", false, fixed("/events?kind=device.moved")},
		{"orders", false, fixed("/orders")},
		{"one order", false, func(i int) string { return "/orders/" + orders.Items[i%len(orders.Items)].ID }},
		{"stock", false, fixed("/stock")},
		{"page: fleet", true, fixed("/")},
		{"page: devices", true, fixed("/devices")},
		{"page: devices by label", true, func(i int) string { return "/devices?selector=site%3D" + site(i) }},
		{"page: device", true, func(i int) string { return "/devices/" + id(i) }},
		{"page: orders", true, fixed("/orders")},
		{"page: stock", true, fixed("/stock")},
		{"page: ledger", true, fixed("/ledger")},
	}, nil
}

// sample walks the list of devices: some IDs of each page, and the cursor behind so many devices.
func (n *node) sample(ctx context.Context, depth int) (ids []string, deep string, err error) {
	cursor := ""
	for seen := 0; ; {
		var page struct {
			Items []struct{ ID string } `json:"items"`
			Next  string                `json:"next"`
		}
		err := n.api.Do(ctx, client.Call{Path: "/devices", Query: url.Values{"limit": {"1000"}, "cursor": {cursor}}}, &page)
		if err != nil {
			return nil, "", err
		}
		for i := 0; i < len(page.Items); i += 10 {
			ids = append(ids, page.Items[i].ID)
		}
		seen += len(page.Items)
		if seen <= depth || deep == "" {
			deep = page.Next
		}
		if cursor = page.Next; cursor == "" {
			return ids, deep, nil
		}
	}
}

// measureRead runs the rounds of one kind after a short warm-up.
func (b *bench) measureRead(ctx context.Context, n *node, r *reader, kind read) (Result, error) {
	get := func(ctx context.Context, i int) error { return r.get(ctx, kind, i) }
	warm := loop{workers: b.clients, count: 2 * b.clients}
	if m := warm.run(ctx, get); m.first != nil {
		return Result{}, fmt.Errorf("%s: %w", kind.name, m.first)
	}
	var rounds []Result
	for round := range b.rounds {
		var m measured
		used, err := n.during(func() error {
			l := loop{workers: b.clients, count: b.requests, limit: roundTime}
			m = l.run(ctx, func(ctx context.Context, i int) error { return get(ctx, round*b.requests+i) })
			return ctx.Err()
		})
		if err != nil {
			return Result{}, err
		}
		if m.first != nil {
			b.say("%s: %d of %d failed, the first by: %s", kind.name, m.failed, m.count, m.first)
		}
		row := m.result()
		row.CPUPerRequest = milliseconds(used.server) / float64(m.count)
		row.DatabaseCPUPerRequest = milliseconds(used.database) / float64(m.count)
		rounds = append(rounds, row)
	}
	row := medianOf(rounds)
	row.Scenario, row.Devices = "reads/"+kind.name, b.devices
	b.say("%-34s p50 %6.1f ms  p99 %6.1f ms  %6.2f CPU-ms", kind.name, row.P50, row.P99, row.CPUPerRequest)
	return row, nil
}

// reader sends requests as several programs and one signed-in person do.
type reader struct {
	base     string
	tokens   []string
	programs *http.Client
	browser  *http.Client
}

func newReader(ctx context.Context, n *node, clients int) (*reader, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: clients, MaxConnsPerHost: clients}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	r := &reader{
		base: n.boot.Console, programs: &http.Client{Transport: transport, Timeout: readTimeout},
		browser: &http.Client{Transport: transport, Timeout: readTimeout, Jar: jar},
	}
	for i := range readTokens {
		var made struct {
			Secret string `json:"secret"`
		}
		if err := n.do(ctx, http.MethodPost, "/tokens", client.Object{"name": fmt.Sprintf("bench %d", i)}, &made); err != nil {
			return nil, err
		}
		r.tokens = append(r.tokens, made.Secret)
	}
	return r, r.signIn(ctx, n.boot.Admin)
}

// signIn gets the browser its session.
func (r *reader) signIn(ctx context.Context, admin client.BootstrapAdmin) error {
	form := url.Values{"name": {admin.Name}, "password": {admin.Password}, "next": {"/account"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+"/login", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := r.browser.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Request.URL.Path == "/login" {
		return fmt.Errorf("sign in: %s at %s", resp.Status, resp.Request.URL.Path)
	}
	return nil
}

// get sends one request and reads the whole answer.
func (r *reader) get(ctx context.Context, kind read, i int) error {
	sender, address := r.programs, r.base+"/api/v1"+kind.path(i)
	if kind.page {
		sender, address = r.browser, r.base+kind.path(i)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	if !kind.page {
		req.Header.Set("Authorization", "Bearer "+r.tokens[i%len(r.tokens)])
	}
	resp, err := sender.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", kind.path(i), resp.Status)
	}
	return nil
}
