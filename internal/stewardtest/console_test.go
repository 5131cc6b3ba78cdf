package stewardtest_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/ui/uitest"
)

// seedFleet makes one device of each kind that the console has something to say about.
func seedFleet(t *testing.T, h *House) (waiting *Device) {
	t.Helper()
	h.Push("", "1.0.0", Good)
	h.Push("", "2.0.0", Bad)
	fleet := h.Enlist(h.API, 0, 4)
	for i, d := range fleet {
		h.Label(d.ID, Object{"site": "berlin", "ring": []string{"canary", "stable"}[i%2]})
	}
	h.Send(http.MethodPost, "/groups", Object{"name": "canary", "selector": "ring=canary"})
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 4)
	h.AwaitState(h.Assign("2.0.0", "ring=canary"), "rolled_back", 2)
	h.Send(http.MethodPost, "/devices/"+fleet[1].ID+"/move", Object{"to": "quarantined", "reason": "behaves oddly"})
	h.Retire(fleet[2].ID)
	h.Retire(fleet[3].ID)
	h.OrderDisposal(fleet[3].ID, fleet[3].Serial)
	h.AwaitStage(fleet[3].ID, "disposed")
	h.VerifyCertificate(fleet[3].ID)
	stranger := uninvited(h, 4)
	stranger.Start()
	if err := deliver(t, h, h.Order(2), "serial,model\nB-1,gateway\nB-2,toaster\n"); err != nil {
		t.Fatal(err)
	}
	h.Account("viewer-bot", "viewer", "site=berlin")
	h.Until("the stranger is in quarantine", func() bool { return h.Counted("quarantined") == 2 })
	return h.Prepare(h.API, 5, 1)[0]
}

// signIn uses the form; the browser keeps the session for all tabs.
func signIn(t *testing.T, h *House, b *uitest.Browser) {
	t.Helper()
	tab := b.Open(t, h.Boot.Console+"/", uitest.Options{})
	defer tab.Close()
	tab.WaitFor(`location.pathname == "/login"`)
	tab.Check("login")
	tab.Do(fmt.Sprintf(`document.querySelector("[name=name]").value = %q; document.querySelector("[name=password]").value = %q;
		document.querySelector("form[action='/login'] button").click()`, h.Boot.Admin.Name, h.Boot.Admin.Password))
	tab.WaitFor(`location.pathname == "/"`)
}

func TestEveryConsolePageIsReadableAndLive(t *testing.T) {
	t.Parallel()
	b := uitest.Start(t)
	h := Start(t, Options{ManagedKeys: true})
	waiting := seedFleet(t, h)
	signIn(t, h, b)
	c := &crawl{t: t, h: h, browser: b, seen: map[string]bool{}}
	paths := []string{"/", "/enrollment/clones", "/monitoring/disk", "/monitoring/clock"} // these are linked when there is trouble
	for _, d := range h.List("/devices") {                                                // one of each stage, which look different
		stage, _ := d["stage"].(string)
		id, _ := d["id"].(string)
		if c.once("device in stage " + stage) {
			paths = append(paths, "/devices/"+id)
		}
	}
	c.from(paths)
	t.Logf("%d pages: %s", len(c.visited), strings.Join(c.visited, " "))
	for _, must := range []string{"/", "/devices", "/groups", "/orders", "/enrollment", "/releases", "/updates", "/disposal", "/ledger", "/access", "/stock", "/models", "/suppliers", "/account"} {
		if !slices.Contains(c.visited, must) {
			t.Errorf("no link leads to %s", must)
		}
	}

	home := b.Open(t, h.Boot.Console+"/", uitest.Options{})
	home.Do("window.sameLoad = true")
	active := fmt.Sprintf(`document.querySelector('a[href*="stage=active"] .life-count')?.textContent.trim() == %q`, fmt.Sprint(h.Counted("active")+1))
	waiting.Start()
	home.WaitFor(active)
	var same bool
	home.Eval("window.sameLoad === true", &same)
	if !same {
		t.Error("the page was loaded again")
	}
	home.Check("fleet after a device has come")
}

// crawl visits every page that links lead to.
type crawl struct {
	t       *testing.T
	h       *House
	browser *uitest.Browser
	seen    map[string]bool
	visited []string
}

// names are parts of addresses that stand for many pages of one kind.
var names = regexp.MustCompile(`\b(dev|ord|del|tok|asg|acc|api|evt|dsp|dis|led|rel)-[0-9a-z]{6,}|/[0-9a-f-]{20,}|/documents/[a-z]+/[a-z]+|/[0-9]+\b|/[0-9a-z]{24,}`)

// kind is what two pages of one template have in common: the path without names, and which filter is
// set. Several filters at a time are no kind of their own, and "".
func kind(path string) string {
	path, query, filtered := strings.Cut(path, "?")
	path = names.ReplaceAllString(path, "*")
	if !filtered {
		return path
	}
	key, _, _ := strings.Cut(query, "=")
	if strings.Contains(query, "&") {
		return path
	}
	return path + "?" + key
}

func (c *crawl) once(what string) bool {
	if c.seen[what] {
		return false
	}
	c.seen[what] = true
	return true
}

// maxPages is a wall: the console has fewer kinds of pages.
const maxPages = 150

func (c *crawl) from(queue []string) {
	for _, path := range queue {
		c.once(kind(path))
	}
	for ; len(queue) > 0; queue = queue[1:] {
		if len(c.visited) >= maxPages {
			c.t.Fatalf("more than %d kinds of pages: %v", maxPages, c.visited)
		}
		for _, next := range c.visit(queue[0]) {
			if c.once(kind(next)) {
				queue = append(queue, next)
			}
		}
	}
}

// links are the GET links and forms of a page that lead to pages.
const links = `[...document.querySelectorAll("a[href]")].filter((a) => a.origin == location.origin && !a.hasAttribute("download"))
	.map((a) => a.pathname + a.search).filter((p) => !/^\/(api|static|pki|metrics)\b|\.(json|csv|pem|crl|yaml)(\?|$)/.test(p))`

// visit checks one page in both sizes and themes and returns where it leads.
func (c *crawl) visit(path string) (found []string) {
	c.t.Helper()
	c.visited = append(c.visited, path)
	tab := c.browser.Open(c.t, c.h.Boot.Console+path, uitest.Options{})
	defer tab.Close()
	var status int
	tab.Eval(`performance.getEntriesByType("navigation")[0].responseStatus`, &status)
	if status != http.StatusOK {
		c.t.Errorf("%s: status %d: %.300s", path, status, tab.Text("main"))
		return nil
	}
	for _, width := range []int{1280, 390} {
		for _, theme := range []string{"light", "dark"} {
			tab.Look(width, 900, theme == "dark")
			tab.Check(fmt.Sprintf("%s at %d px, %s", path, width, theme))
			if dir := os.Getenv("STEWARD_SCREENSHOTS"); dir != "" {
				file := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(kind(path), "-"), "-")
				tab.Screenshot(filepath.Join(dir, fmt.Sprintf("console-%s-%d-%s.png", file, width, theme)))
			}
		}
	}
	tab.Eval(links, &found)
	return found
}
