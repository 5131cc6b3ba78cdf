package cli

import (
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

// soon asks the server for an answer at once where work goes on behind it (RFC 7240).
var soon = http.Header{"Prefer": {"respond-async"}}

// awaitInterval is how often the progress of long work is looked at.
const awaitInterval = 500 * time.Millisecond

// await draws the progress of long work behind a thing until it is done, and returns the thing as it is
// then. progress tells how far a thing is, and false when nothing is under way.
func (a *app) await(cmd *cobra.Command, c *client.Client, path string, thing client.Object, progress func(client.Object) (done, total float64, busy bool)) (client.Object, error) {
	b := newBar(cmd.ErrOrStderr())
	defer b.end()
	tick := time.NewTicker(awaitInterval)
	defer tick.Stop()
	for {
		done, total, busy := progress(thing)
		b.count("", int64(done), int64(total))
		if !busy {
			return thing, nil
		}
		select {
		case <-tick.C:
		case <-cmd.Context().Done():
			return nil, cmd.Context().Err()
		}
		thing = client.Object{}
		if err := c.Do(cmd.Context(), client.Call{Path: path}, &thing); err != nil {
			return nil, err
		}
	}
}

// orderProgress is how far long work on an order is.
func orderProgress(order client.Object) (done, total float64, busy bool) {
	p, busy := order["progress"].(map[string]any)
	done, _ = p["done"].(float64)
	total, _ = p["total"].(float64)
	return done, total, busy
}

// bulkProgress is how far a change of many devices is.
func bulkProgress(run client.Object) (done, total float64, busy bool) {
	changed, _ := run["done"].(float64)
	refused, _ := run["refused"].(float64)
	total, _ = run["total"].(float64)
	_, ended := run["ended"]
	return changed + refused, total, !ended
}
