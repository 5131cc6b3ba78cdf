package agent

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// problems are what is wrong just now, by their source. Safe for use by several goroutines.
type problems struct {
	mu    sync.Mutex
	texts map[string]string
}

// set stores or, with an empty text, takes back; it tells whether that changed anything.
func (p *problems) set(source, text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.texts[source] == text {
		return false
	}
	if text == "" {
		delete(p.texts, source)
		return true
	}
	if p.texts == nil {
		p.texts = map[string]string{}
	}
	p.texts[source] = text
	return true
}

// list sorts the texts.
func (p *problems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Values(p.texts))
}

// clockTolerance is how wrong a clock may be before it is a problem.
const clockTolerance = 5 * time.Minute

// gatherProblems asks those that don't call by themselves.
func (a *Agent) gatherProblems() {
	a.problems.set("provisioning", a.provisioning.Problem())
	a.problems.set("monitoring", a.monitoring.Problem())
	a.problems.set("unconfirmed", a.unconfirmed())
	a.tellClock()
	text := ""
	if offset := a.clock.Offset(); offset.Abs() > clockTolerance {
		text = fmt.Sprintf("the device's clock is %s the server's", aheadOrBehind(offset))
	}
	a.problems.set("clock", text)
}

// aheadOrBehind rounds to the hour or the minute, so that the text does not change with every report.
func aheadOrBehind(offset time.Duration) string {
	unit := time.Minute
	if offset.Abs() > 2*time.Hour {
		unit = time.Hour
	}
	n := strconv.FormatInt(int64(offset.Abs()/unit), 10)
	word := " minutes "
	if unit == time.Hour {
		word = " hours "
	}
	if offset > 0 {
		return n + word + "ahead of"
	}
	return n + word + "behind"
}
