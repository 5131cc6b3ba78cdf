package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"steward/internal/wire"
)

// Whole is Desired's epoch of a device that has no desired state yet, or wants it again. 0 is none: it is
// the epoch of a device of which nothing is desired.
const Whole int64 = -1

// Desired fetches the signed envelope. With an epoch other than Whole the server answers only when it
// has another one, after at most wait, else ErrNotModified.
func (c *Client) Desired(ctx context.Context, epoch int64, wait time.Duration) (envelope []byte, err error) {
	wait = min(wait, wire.MaxWaitSeconds*time.Second)
	r := request{method: http.MethodGet, path: wire.PathDesired, limit: wire.MaxEnvelopeBytes, timeout: requestTimeout + wait}
	if epoch >= 0 {
		r.header = map[string]string{"If-None-Match": `"` + strconv.FormatInt(epoch, 10) + `"`}
		if wait >= time.Second {
			r.query = url.Values{"wait": {strconv.Itoa(int(wait / time.Second))}}
		}
	}
	got, err := c.do(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("fetch the desired state: %w", err)
	}
	switch {
	case got.status != http.StatusNotModified:
		return got.body, nil
	case epoch >= 0:
		return nil, ErrNotModified
	}
	return nil, errors.New("fetch the desired state: the server withholds it: it was asked for the whole, not whether it has changed")
}

// Document fetches a desired section's body and verifies its hash.
func (c *Client) Document(ctx context.Context, hash wire.Hash) ([]byte, error) {
	got, err := c.do(ctx, request{method: http.MethodGet, path: wire.PathDocuments + string(hash), limit: wire.MaxDocumentBytes})
	if err != nil {
		return nil, fmt.Errorf("fetch document %.12s: %w", hash, err)
	}
	if wire.HashOf(got.body) != hash {
		return nil, fmt.Errorf("document %.12s: the server sent other bytes", hash)
	}
	return got.body, nil
}

// PutDocument uploads a reported section's body.
func (c *Client) PutDocument(ctx context.Context, hash wire.Hash, body []byte) error {
	if len(body) > wire.MaxDocumentBytes {
		return fmt.Errorf("upload document %.12s: %d bytes, at most %d", hash, len(body), wire.MaxDocumentBytes)
	}
	_, err := c.do(ctx, request{method: http.MethodPut, path: wire.PathDocuments + string(hash), body: body, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("upload document %.12s: %w", hash, err)
	}
	return nil
}

// Report sends what the device is. The answer comes after the server's commit.
func (c *Client) Report(ctx context.Context, report wire.Report) (wire.ReportAnswer, error) {
	var answer wire.ReportAnswer
	body, err := json.Marshal(report)
	if err != nil {
		return answer, err
	}
	if len(body) > wire.MaxReportBytes {
		return answer, fmt.Errorf("report of %d bytes: at most %d", len(body), wire.MaxReportBytes)
	}
	got, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathReport, body: body, contentType: "application/json", limit: wire.MaxReportBytes})
	if err != nil {
		return answer, fmt.Errorf("report: %w", err)
	}
	if err := wire.Decode(got.body, &answer); err != nil {
		return answer, fmt.Errorf("answer to the report: %w", err)
	}
	return answer, nil
}

// PostMetrics sends an OTLP/JSON ExportMetricsServiceRequest.
func (c *Client) PostMetrics(ctx context.Context, body []byte) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathMetrics, body: body, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("send metrics: %w", err)
	}
	return nil
}

// PostDisposal sends the signed statement of sanitization.
func (c *Client) PostDisposal(ctx context.Context, envelope []byte) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: wire.PathDisposal, body: envelope, contentType: "application/json", limit: maxProblemBytes})
	if err != nil {
		return fmt.Errorf("send the sanitization statement: %w", err)
	}
	return nil
}

// Metadata fetches a file of the tenant's TUF repository, "timestamp.json" or "3.root.json". The bytes
// are verified by TUF, not here. NotFound tells that there is none of that name.
func (c *Client) Metadata(ctx context.Context, name string) ([]byte, error) {
	got, err := c.do(ctx, request{method: http.MethodGet, path: wire.PathTUF + name, limit: MaxMetadataBytes})
	if err != nil {
		return nil, fmt.Errorf("fetch TUF metadata %s: %w", name, err)
	}
	return got.body, nil
}
