package link

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// trust serves the document that an enrollment token pins. Its name is its hash, so it never changes.
func (s *Server) trust(w http.ResponseWriter, r *http.Request) error {
	pin, err := wire.ParseHash(r.PathValue("pin"))
	if err != nil {
		return badRequest("%s", err)
	}
	body, err := s.cfg.Trust(r.Context(), pin)
	if err != nil {
		return err
	}
	return send(w, "application/json", body, pin)
}

// send answers a body whose name is its hash.
func send(w http.ResponseWriter, mime string, body []byte, hash wire.Hash) error {
	h := w.Header()
	h.Set("Content-Type", mime)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("ETag", `"`+string(hash)+`"`)
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	_, err := w.Write(body)
	return err
}

// desired answers the signed envelope. With If-None-Match of the current epoch it waits up to
// ?wait=<seconds> for a newer one, a little less for each device by chance, so that a fleet that
// started together doesn't ask together for ever.
func (s *Server) desired(w http.ResponseWriter, r *http.Request, d device.Device) error {
	wait, err := waitOf(r)
	if err != nil {
		return err
	}
	have, ok := epochOf(r.Header.Get("If-None-Match"))
	if ok {
		now, err := s.cfg.Desired.Epoch(r.Context(), d.Num)
		if err != nil {
			return err
		}
		if now == have && wait > 0 {
			if err := s.wait(r.Context(), d.Num, have, wait); err != nil {
				return err
			}
			if d, now, err = s.waited(w, r, d, have); err != nil {
				return err
			}
		}
		if now == have {
			if err := s.tellCommands(w, r, d); err != nil {
				return err
			}
			w.Header().Set("ETag", etag(have))
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	envelope, epoch, err := s.cfg.Desired.Envelope(r.Context(), d)
	if err != nil {
		return err
	}
	if err := s.tellCommands(w, r, d); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(envelope)))
	h.Set("ETag", etag(epoch))
	h.Set("Cache-Control", "no-store")
	_, err = w.Write(envelope)
	return err
}

// waited looks again at who asks: the device may have lost its certificate, its tenant or its service
// while it waited. One that has meanwhile renewed its certificate is sent away without news, and comes
// back with the new one.
func (s *Server) waited(w http.ResponseWriter, r *http.Request, d device.Device, have int64) (device.Device, int64, error) {
	now, err := s.who.certificate(r.Context(), clientCertificate(r))
	var refusal *fault.Error
	if errors.As(err, &refusal) && refusal.Code == wire.CodeSuperseded {
		w.Header().Set("Connection", "close")
		return d, have, nil
	}
	if err != nil {
		return d, 0, err
	}
	epoch, err := s.cfg.Desired.Epoch(r.Context(), d.Num)
	return now, epoch, err
}

// wait returns nil when the epoch has changed, a command has come, the time is over or this node shuts down.
func (s *Server) wait(ctx context.Context, num, have int64, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait-time.Duration(rand.Int64N(int64(wait)/10+1)))
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	ctx, done := s.polls.wait(ctx, num)
	defer done()
	_, err := s.cfg.Desired.WaitEpoch(ctx, num, have)
	switch {
	case err == nil, errors.Is(ctx.Err(), context.DeadlineExceeded), context.Cause(ctx) == errCommand, s.stopping.Err() != nil:
		return nil
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	}
	return err
}

func waitOf(r *http.Request) (time.Duration, error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, badRequest("wait is %.20q: want seconds from 0 to %d", text, wire.MaxWaitSeconds)
	}
	return time.Duration(min(n, wire.MaxWaitSeconds)) * time.Second, nil
}

func etag(epoch int64) string { return `"` + strconv.FormatInt(epoch, 10) + `"` }

// epochOf reads an ETag of ours; any other means that the device has nothing that we know.
func epochOf(header string) (int64, bool) {
	n, err := strconv.ParseInt(strings.Trim(strings.TrimPrefix(header, "W/"), `"`), 10, 64)
	return n, err == nil
}

func (s *Server) report(w http.ResponseWriter, r *http.Request, d device.Device) error {
	data, err := read(w, r, wire.MaxReportBytes)
	if err != nil {
		return err
	}
	answer, err := s.takeReport(r.Context(), d, data)
	if err != nil {
		return err
	}
	return sendJSON(w, answer)
}

func sendJSON(w http.ResponseWriter, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	_, err = w.Write(body)
	return err
}

func (s *Server) document(w http.ResponseWriter, r *http.Request, d device.Device) error {
	hash, err := wire.ParseHash(r.PathValue("hash"))
	if err != nil {
		return badRequest("%s", err)
	}
	body, err := s.findDocument(r.Context(), d, hash)
	if err != nil {
		return err
	}
	return send(w, "application/json", body, hash)
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request, d device.Device) error {
	if _, err := wire.ParseHash(r.PathValue("hash")); err != nil {
		return badRequest("%s", err)
	}
	body, err := read(w, r, wire.MaxDocumentBytes)
	if err != nil {
		return err
	}
	return noContent(w, s.takeDocument(r.Context(), d, r.PathValue("hash"), body))
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request, d device.Device) error {
	kind := "application/json"
	if text := r.Header.Get("Content-Type"); text != "" {
		var err error
		if kind, _, err = mime.ParseMediaType(text); err != nil {
			return badRequest("the Content-Type is %.60q", text)
		}
	}
	if kind != "application/json" && kind != "application/x-protobuf" {
		return badRequest("metrics are OTLP as application/json or application/x-protobuf, not %.60q", kind)
	}
	body, err := read(w, r, wire.MaxMetricsBytes)
	if err != nil {
		return err
	}
	out, err := s.cfg.Metrics(r.Context(), d, kind, body)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	_, err = w.Write(out)
	return err
}

// artifact serves a file with ranges (RFC 9110, section 14), so that a download goes on where it broke
// off. The ETag is the content's hash: If-Range holds for ever.
func (s *Server) artifact(w http.ResponseWriter, r *http.Request, d device.Device) error {
	hash, err := wire.ParseHash(r.PathValue("hash"))
	if err != nil {
		return badRequest("%s", err)
	}
	if d.Stage == device.Quarantined {
		return fault.Later(fault.Forbidden, wire.CodeQuarantined, 5*time.Minute, "this device is in quarantine and gets nothing to install")
	}
	f, err := s.cfg.Artifact(r.Context(), d, string(hash))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was read only
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `"`+string(hash)+`"`)
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	out := &ranged{ResponseWriter: w}
	http.ServeContent(out, r, "", time.Time{}, f)
	if out.unsatisfied {
		h.Del("Content-Length")
		return fault.Coded(errRange, wire.CodeRequestInvalid, "the range lies outside of the artifact: see Content-Range for its size")
	}
	return nil
}

// errRange is answered with 416.
var errRange = errors.New("range not satisfiable")

// ranged holds back what http.ServeContent says to a range that can't be served: refusals are problem
// documents here.
type ranged struct {
	http.ResponseWriter
	unsatisfied bool
}

func (w *ranged) WriteHeader(status int) {
	if status == http.StatusRequestedRangeNotSatisfiable {
		w.unsatisfied = true
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *ranged) Write(p []byte) (int, error) {
	if w.unsatisfied {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

var metadataName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$`)

const maxMetadataName = 512 // bytes

func (s *Server) metadata(w http.ResponseWriter, r *http.Request, d device.Device) error {
	name := r.PathValue("name")
	if len(name) > maxMetadataName || !metadataName.MatchString(name) {
		return badRequest("%.100q is no name of a metadata file", name)
	}
	body, err := s.cfg.Metadata(r.Context(), d.Tenant, name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-cache")
	_, err = w.Write(body)
	return err
}

// disposal takes the sealed statement of sanitization. The device destroys its key on the 2xx answer,
// so it comes after the commit; that also revokes the device, whose connections close once the answer
// is out.
func (s *Server) disposal(w http.ResponseWriter, r *http.Request, d device.Device) error {
	envelope, err := read(w, r, wire.MaxEnvelopeBytes)
	if err != nil {
		return err
	}
	if err := s.cfg.Disposal(r.Context(), d, envelope); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
