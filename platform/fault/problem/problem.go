// Package problem renders a gRPC status as problem details (RFC 9457): how
// every error looks over HTTP.
package problem

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// ContentType is that of problem details.
const ContentType = "application/problem+json"

// typePrefix and the reason make the problem's type. It is a name, not an
// address: docs/errors.md lists what the names mean.
const typePrefix = "urn:marquee:error:"

// Details are the members of a problem document. Type, title, status, detail
// and instance are those of RFC 9457; the others are extensions.
type Details struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	// Detail is the message for people.
	Detail string `json:"detail,omitempty"`
	// Instance is the path that was asked for; empty unless the caller sets it.
	Instance string `json:"instance,omitempty"`
	// Code is the name in google.rpc.Code, Reason the stable name for programs.
	Code   string `json:"code"`
	Reason string `json:"reason"`
	// RequestID finds the request in the logs.
	RequestID string `json:"request_id,omitempty"`
	// Errors are the violated rules.
	Errors   []Field           `json:"errors,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`

	retryAfter time.Duration
}

// Field is one violated rule.
type Field struct {
	Field       string `json:"field"`
	Description string `json:"description"`
	Rule        string `json:"rule,omitempty"`
}

// From makes the document of a status. requestID is used when the status does
// not carry one. A status of OK, which is no problem, becomes UNKNOWN.
func From(st *status.Status, requestID string) Details {
	f := grpcfault.FromStatus(st)
	if f == nil {
		f = fault.New(fault.Unknown, "UNKNOWN", "a failure without an error")
	}
	if id := grpcfault.RequestID(st); id != "" {
		requestID = id
	}
	d := Details{
		Type:       typePrefix + f.Reason,
		Title:      f.Code.Title(),
		Status:     f.Code.HTTPStatus(),
		Detail:     f.Message,
		Code:       f.Code.String(),
		Reason:     f.Reason,
		RequestID:  requestID,
		Metadata:   f.Meta,
		retryAfter: f.RetryAfter,
	}
	for _, v := range f.Fields {
		d.Errors = append(d.Errors, Field{Field: v.Path, Description: v.Description, Rule: v.Rule})
	}
	return d
}

// Write answers with the status's problem details, with Retry-After when the
// status says when to try again, and with WWW-Authenticate on 401 (RFC 6750).
func Write(w http.ResponseWriter, st *status.Status, requestID string) {
	From(st, requestID).Write(w)
}

// Write answers with the document. The client may be gone: nobody is told.
func (d Details) Write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", ContentType)
	h.Set("Cache-Control", "no-store")
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	if d.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(d.retryAfter.Seconds()))))
	}
	if d.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", d.challenge())
	}
	body, err := json.Marshal(d)
	if err != nil { // strings and numbers always marshal
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.WriteHeader(d.Status)
	_, _ = w.Write(append(body, '\n'))
}

// challenge is bare when no token came and says invalid_token when one was
// refused, as RFC 6750 section 3.1 wants it.
func (d Details) challenge() string {
	switch d.Reason {
	case "TOKEN_INVALID", "TOKEN_EXPIRED", "SESSION_ENDED":
		return `Bearer error="invalid_token"`
	default:
		return "Bearer"
	}
}
