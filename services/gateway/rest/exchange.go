package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/problem"
	"github.com/marquee-ads/marquee/services/gateway/backend"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/stage"
	"github.com/marquee-ads/marquee/services/gateway/transcode"
)

const (
	jsonType   = "application/json"
	ndjsonType = "application/x-ndjson"
)

// exchange is one request and its response.
type exchange struct {
	door    *Door
	w       http.ResponseWriter
	r       *http.Request
	method  *catalog.Method
	binding *transcode.Binding
	params  transcode.Params
	allowed []string
	problem error // with the header, found before the stages
	body    []byte
	// complete: what is not found does not exist.
	complete bool
	// begun: the status line is out, so that an error can only follow it.
	begun bool
}

// find looks the route up. HEAD is served by the route for GET.
func (x *exchange) find(snapshot *catalog.Snapshot) bool {
	method := x.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var found bool
	x.complete = snapshot.Complete()
	x.binding, x.params, x.allowed, found = snapshot.Routes().Match(method, x.r.URL.EscapedPath())
	if !found {
		return false
	}
	x.method = snapshot.MethodOf(x.binding.Method())
	return true
}

// receive refuses what the header rules out and reads the body.
func (x *exchange) receive(ctx context.Context, call *stage.Call) (err error) {
	if x.problem != nil || call.Method == nil {
		return x.problem
	}
	if err := checkHeaders(x.r.Header); err != nil {
		return err
	}
	if err := checkAccept(x.r.Header, call.Method.ServerStreams); err != nil {
		return err
	}
	x.body, err = x.readBody(ctx)
	return err
}

// forward makes the call and writes the answer.
func (x *exchange) forward(ctx context.Context, call *stage.Call) error {
	if call.Method == nil {
		return x.noRoute(call)
	}
	message, err := x.binding.Request(nil, x.params, x.r.URL.RawQuery, x.body)
	if err != nil {
		return err
	}
	ctx = metadata.NewOutgoingContext(ctx, call.Metadata)
	if call.Method.ServerStreams {
		return x.stream(ctx, call, backend.NewFrame(message))
	}
	return x.unary(ctx, call, backend.NewFrame(message))
}

func (x *exchange) unary(ctx context.Context, call *stage.Call, request *backend.Frame) error {
	var reply backend.Reply
	err := call.Method.Backend.Invoke(ctx, call.Method.Path, call.Method.Idempotent, request, &reply)
	x.servedBy(reply.Header)
	if err != nil {
		return err
	}
	defer reply.Message.Free()
	buffer := x.door.buffer()
	defer x.door.recycle(buffer)
	out, err := x.binding.Response((*buffer)[:0], reply.Message.Bytes())
	if err != nil {
		return err
	}
	*buffer = out
	header := x.begin(call.RequestID, jsonHeader)
	header["Content-Length"] = []string{strconv.Itoa(len(out))}
	x.w.WriteHeader(http.StatusOK)
	_, _ = x.w.Write(out) // a client that left has its request cancelled
	return nil
}

// stream writes a line of JSON for each message, {"result": …}, and one
// {"error": …} with problem details if it ends badly.
func (x *exchange) stream(ctx context.Context, call *stage.Call, request *backend.Frame) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(x.door.leaving, func() { cancel(context.Cause(x.door.leaving)) })()
	messages, err := call.Method.Backend.Watch(ctx, call.Method.Path, call.Method.Idempotent, request)
	if err != nil {
		return err
	}
	header, _ := messages.Header()
	x.servedBy(header)
	control := http.NewResponseController(x.w)
	// A stream may be silent for as long as it likes: only writing has a limit,
	// and the end of the response is written after this function.
	if err := control.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	defer func() { _ = control.SetWriteDeadline(time.Now().Add(writeGrace)) }()
	buffer := x.door.buffer()
	defer x.door.recycle(buffer)
	var message backend.Frame
	for {
		err := messages.RecvMsg(&message)
		if err == nil {
			err = x.line(control, buffer, &message, call.RequestID)
			message.Free()
		} else if !errors.Is(err, io.EOF) {
			err = call.Method.Backend.Explain(ctx, err, messages)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			x.start(call.RequestID) // a stream without messages is an empty body
			return nil
		default:
			return err
		}
	}
}

// line writes one message and sends it on its way.
func (x *exchange) line(control *http.ResponseController, buffer *[]byte, message *backend.Frame, requestID string) error {
	out := (*buffer)[:0]
	out = append(out, `{"result":`...)
	out, err := x.binding.Response(out, message.Bytes())
	if err != nil {
		return err
	}
	out = append(out, "}\n"...)
	*buffer = out
	x.start(requestID)
	return x.send(control, out)
}

// send writes part of a stream; a client that does not read is left behind.
func (x *exchange) send(control *http.ResponseController, out []byte) error {
	err := control.SetWriteDeadline(time.Now().Add(writeGrace))
	if err == nil {
		_, err = x.w.Write(out)
	}
	if err == nil {
		err = control.Flush()
	}
	if err == nil {
		err = control.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		return fault.New(fault.Canceled, "CLIENT_GONE", "the client left or does not read").Because(err)
	}
	return nil
}

// start begins the response of a stream, once.
func (x *exchange) start(requestID string) {
	if !x.begun {
		x.begin(requestID, ndjsonHeader)
		x.w.WriteHeader(http.StatusOK)
	}
}

// Shared by all responses: net/http only reads them.
var (
	jsonHeader    = []string{jsonType}
	ndjsonHeader  = []string{ndjsonType}
	noStoreHeader = []string{"no-store"}
	nosniffHeader = []string{"nosniff"}
)

// begin sets the headers that every answer has.
func (x *exchange) begin(requestID string, contentType []string) http.Header {
	x.begun = true
	header := x.w.Header()
	header["Content-Type"] = contentType
	header["Cache-Control"] = noStoreHeader
	header["X-Content-Type-Options"] = nosniffHeader
	header["X-Request-Id"] = []string{requestID}
	return header
}

func (x *exchange) servedBy(md metadata.MD) {
	if values := md[stage.ServedBy]; x.door.opts.ServedBy && len(values) > 0 {
		x.w.Header()["X-Served-By"] = values
	}
}

func (x *exchange) noRoute(call *stage.Call) error {
	if len(x.allowed) == 0 {
		if !x.complete {
			return catalog.ErrIncomplete
		}
		return refuse(http.StatusNotFound, fault.NotFound, "ROUTE_UNKNOWN", "there is nothing at this path")
	}
	allowed := slices.Clone(x.allowed)
	if slices.Contains(allowed, http.MethodGet) {
		allowed = append(allowed, http.MethodHead)
	}
	slices.Sort(allowed)
	list := strings.Join(append(allowed, http.MethodOptions), ", ")
	x.w.Header()["Allow"] = []string{list}
	if x.r.Method == http.MethodOptions {
		x.begun = true
		x.w.Header()["X-Request-Id"] = []string{call.RequestID}
		x.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return refuse(http.StatusMethodNotAllowed, fault.Unimplemented, "METHOD_NOT_ALLOWED", "this path takes %s", list)
}

// readBody reads the whole body within its limits of size and time.
func (x *exchange) readBody(ctx context.Context) ([]byte, error) {
	r, limit := x.r, x.door.opts.MaxBody
	if r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	if err := checkContentType(r.Header); err != nil {
		return nil, err
	}
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	until := time.Now().Add(x.door.opts.BodyTimeout)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	control := http.NewResponseController(x.w)
	if err := control.SetReadDeadline(until); err != nil {
		return nil, err
	}
	body, err := readAll(http.MaxBytesReader(x.w, r.Body, limit), r.ContentLength)
	var large *http.MaxBytesError
	switch {
	case err == nil:
		// The next request on this connection has its own time.
		return body, control.SetReadDeadline(time.Time{})
	case errors.As(err, &large):
		return nil, tooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		x.w.Header()["Connection"] = []string{"close"}
		return nil, refuse(http.StatusRequestTimeout, fault.DeadlineExceeded, "BODY_TOO_SLOW", "the body did not arrive within %s", x.door.opts.BodyTimeout)
	default:
		x.w.Header()["Connection"] = []string{"close"}
		return nil, fault.New(fault.InvalidArgument, "BODY_INCOMPLETE", "the body ended before its announced length").Because(err)
	}
}

// readAll reads a body whose length, if not negative, is known.
func readAll(r io.Reader, length int64) ([]byte, error) {
	if length < 0 {
		return io.ReadAll(r)
	}
	// An announcement costs nothing: memory is taken as bytes come.
	var body bytes.Buffer
	body.Grow(int(min(length, firstRead)) + bytes.MinRead)
	n, err := body.ReadFrom(r)
	if err == nil && n < length {
		err = io.ErrUnexpectedEOF
	}
	return body.Bytes(), err
}

// firstRead is how much memory a body gets before any of it has arrived.
const firstRead = 16 << 10

// abandon ends an exchange in which the gateway panicked: with an error, or,
// when part of an answer is out, by cutting the connection, so that nobody takes
// that part for the whole.
func (x *exchange) abandon(err error, requestID string) {
	if x.begun {
		panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut a connection
	}
	x.fail(err, requestID)
}

// fail tells the caller what went wrong: as the response, or as the last line
// of a stream that has begun.
func (x *exchange) fail(err error, requestID string) {
	details := problem.From(stage.StatusOf(err, requestID), requestID)
	details.Instance = x.r.URL.EscapedPath()
	if r := (*refusal)(nil); errors.As(err, &r) {
		details.Status, details.Title = r.status, http.StatusText(r.status)
	}
	if !x.begun {
		x.begin(requestID, jsonHeader)
		details.Write(x.w)
		return
	}
	line, err := json.Marshal(map[string]problem.Details{"error": details})
	if err == nil {
		_ = x.send(http.NewResponseController(x.w), append(line, '\n')) // nobody is left to tell
	}
}
