package swarm

import (
	"math"
	"slices"
	"time"
)

// Tally is what a number of things took. The zero value is ready; it is not safe for concurrent use.
type Tally struct {
	Count     int     `json:"count"`               // that were tried
	Failed    int     `json:"failed"`              // of them
	Latencies []int64 `json:"latencies,omitempty"` // microseconds, of those that did not fail
	First     string  `json:"first,omitempty"`     // why the first of those failed
	Began     int64   `json:"began,omitempty"`     // Unix microseconds of the first beginning
	Ended     int64   `json:"ended,omitempty"`     // and of the last end

	// Facts are numbers that are added up when tallies are merged, like "resumed" handshakes.
	Facts map[string]int64 `json:"facts,omitempty"`
}

// Done notes one that has ended well or, with an error, has not.
func (t *Tally) Done(began, ended time.Time, err error) {
	t.Count++
	t.span(began.UnixMicro(), ended.UnixMicro())
	if err != nil {
		t.fail(err.Error())
		return
	}
	t.Latencies = append(t.Latencies, ended.Sub(began).Microseconds())
}

// Missed notes so many that did not end at all.
func (t *Tally) Missed(n int, why string) {
	if n > 0 {
		t.Count += n
		t.fail(why)
		t.Failed += n - 1
	}
}

func (t *Tally) fail(why string) {
	t.Failed++
	if t.First == "" {
		t.First = why
	}
}

// Fact adds to a number.
func (t *Tally) Fact(name string, n int64) {
	if t.Facts == nil {
		t.Facts = map[string]int64{}
	}
	t.Facts[name] += n
}

func (t *Tally) span(began, ended int64) {
	if t.Began == 0 || began < t.Began {
		t.Began = began
	}
	t.Ended = max(t.Ended, ended)
}

// Merge adds another process's tally.
func (t *Tally) Merge(o *Tally) {
	if o == nil {
		return
	}
	t.Count, t.Failed = t.Count+o.Count, t.Failed+o.Failed
	t.Latencies = append(t.Latencies, o.Latencies...)
	if t.First == "" {
		t.First = o.First
	}
	if o.Began != 0 {
		t.span(o.Began, o.Ended)
	}
	for name, n := range o.Facts {
		t.Fact(name, n)
	}
}

// Elapsed is from the first beginning to the last end.
func (t *Tally) Elapsed() time.Duration { return time.Duration(t.Ended-t.Began) * time.Microsecond }

// PerSecond is how many ended well per second of Elapsed.
func (t *Tally) PerSecond() float64 {
	if t.Ended <= t.Began {
		return 0
	}
	return float64(t.Count-t.Failed) / t.Elapsed().Seconds()
}

// Percentile is the nearest-rank percentile of the latencies; 0 without any.
func (t *Tally) Percentile(p float64) time.Duration {
	if len(t.Latencies) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t.Latencies))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return time.Duration(sorted[min(max(rank, 1), len(sorted))-1]) * time.Microsecond
}
