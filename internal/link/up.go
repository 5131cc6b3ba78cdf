package link

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/wire"
)

// This file is what messages are about, for HTTPS and MQTT alike: it reads them, hands them to their rooms
// and returns after the commit.

// up handles a message of the device; what is to be said in return goes with its acknowledgement.
func (ss *session) up(ctx context.Context, d device.Device, to upTopic, payload, correlation []byte) error {
	s := ss.s
	switch to.name {
	case wire.TopicReport:
		answer, err := s.takeReport(ctx, d, payload)
		if err != nil {
			return err
		}
		body, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		ss.reply(message{name: downReport, payload: body, correlation: correlation})
		return nil
	case wire.TopicDocument:
		return s.takeDocument(ctx, d, to.rest, payload)
	case wire.TopicFetch:
		return ss.fetch(ctx, d, to.rest, correlation)
	case wire.TopicDesired:
		envelope, epoch, err := s.cfg.Desired.Envelope(ctx, d)
		if err != nil {
			return err
		}
		ss.reply(message{name: downDesired, payload: envelope, correlation: correlation})
		ss.mu.Lock()
		ss.epoch = max(ss.epoch, epoch)
		ss.mu.Unlock()
		return nil
	case wire.TopicMetrics:
		kind := "application/x-protobuf"
		if len(payload) > 0 && payload[0] == '{' {
			kind = "application/json"
		}
		_, err := s.cfg.Metrics(ctx, d, kind, payload)
		return err
	case wire.TopicTelemetry:
		return s.takeTelemetry(ctx, d, payload)
	case wire.TopicEvent:
		return s.takeEvent(ctx, d, payload)
	case wire.TopicResult:
		return s.takeResult(ctx, d, to.rest, payload)
	}
	return fault.New(fault.NotFound, "there is no topic %.60q", to.name)
}

// fetch sends a desired document, when it fits.
func (ss *session) fetch(ctx context.Context, d device.Device, name string, correlation []byte) error {
	hash, err := wire.ParseHash(name)
	if err != nil {
		return badRequest("%s", err)
	}
	body, err := ss.s.findDocument(ctx, d, hash)
	if err != nil {
		return err
	}
	const around = 256 // bytes of topic and properties, but for the correlation data
	if len(body)+len(correlation)+around > ss.mostBytes {
		return fault.Coded(fault.TooLarge, wire.CodeRequestInvalid, "document %s has %d bytes, more than a packet may have here: fetch it by HTTPS", hash, len(body))
	}
	ss.reply(message{name: downDocument, rest: name, payload: body, correlation: correlation})
	return nil
}

func (s *Server) findDocument(ctx context.Context, d device.Device, hash wire.Hash) ([]byte, error) {
	body, err := s.cfg.Reports.Document(ctx, d, hash)
	if errors.Is(err, fault.NotFound) {
		return nil, fault.Coded(fault.NotFound, wire.CodeDocumentMissing, "this device has no document %s", hash)
	}
	return body, err
}

func (s *Server) takeReport(ctx context.Context, d device.Device, data []byte) (wire.ReportAnswer, error) {
	var report wire.Report
	if err := decode("report", data, wire.MaxReportBytes, &report); err != nil {
		return wire.ReportAnswer{}, err
	}
	if err := checkProtocol(strconv.Itoa(report.Protocol)); report.Protocol != 0 && err != nil {
		return wire.ReportAnswer{}, err
	}
	return s.cfg.Reports.Report(ctx, d, report)
}

func (s *Server) takeDocument(ctx context.Context, d device.Device, name string, body []byte) error {
	hash, err := wire.ParseHash(name)
	if err != nil {
		return badRequest("%s", err)
	}
	if got := wire.HashOf(body); got != hash {
		return badRequest("the body has the hash %s, not that of the path", got)
	}
	return s.cfg.Reports.Upload(ctx, d, hash, body)
}

func (s *Server) takeTelemetry(ctx context.Context, d device.Device, data []byte) error {
	if s.cfg.Events == nil {
		return errNotServed("telemetry")
	}
	var t wire.Telemetry
	if err := decode("telemetry", data, wire.MaxReportBytes, &t); err != nil {
		return err
	}
	return s.cfg.Events.Telemetry(ctx, d, t)
}

func (s *Server) takeEvent(ctx context.Context, d device.Device, data []byte) error {
	if s.cfg.Events == nil {
		return errNotServed("events")
	}
	var e wire.DeviceEvent
	if err := decode("event", data, maxEventBytes, &e); err != nil {
		return err
	}
	return s.cfg.Events.Event(ctx, d, e)
}

func (s *Server) takeResult(ctx context.Context, d device.Device, id string, data []byte) error {
	if s.cfg.Commands == nil {
		return errNotServed("results")
	}
	var r wire.RemoteResult
	if err := decode("result", data, maxResultBytes, &r); err != nil {
		return err
	}
	return s.cfg.Commands.Result(ctx, d, id, r)
}

// Bounds of bodies, in bytes. What is within them, the rooms bound.
const (
	maxEventBytes  = 16 << 10
	maxResultBytes = wire.MaxCommandBytes + 8<<10
)

func decode(what string, data []byte, most int, v any) error {
	if len(data) > most {
		return fault.Coded(fault.TooLarge, wire.CodeRequestInvalid, "the %s has %d bytes, at most %d are taken", what, len(data), most)
	}
	if err := wire.Decode(data, v); err != nil {
		return badRequest("the %s is not the JSON it should be: %s", what, err)
	}
	return nil
}

func errNotServed(what string) error {
	return fault.New(fault.NotFound, "this server takes no %s", what)
}
