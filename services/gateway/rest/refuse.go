package rest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/fault/problem"
)

// refusal is an error about HTTP itself: its status says more than that of the
// code it has everywhere else.
type refusal struct {
	status int
	fault  *fault.Error
}

func (r *refusal) Error() string { return fmt.Sprintf("%d: %s", r.status, r.fault.Error()) }
func (r *refusal) Unwrap() error { return r.fault }

func refuse(status int, code fault.Code, reason, format string, args ...any) *refusal {
	return &refusal{status: status, fault: fault.New(code, reason, format, args...)}
}

// Goodbye is what a client reads on a connection that is refused with f, whatever
// it may have asked.
func Goodbye(f *fault.Error) ([]byte, error) {
	details := problem.From(grpcfault.ToStatus(f, ""), "")
	body, err := json.Marshal(details)
	if err != nil {
		return nil, fmt.Errorf("write the refusal of a connection: %w", err)
	}
	response := http.Response{
		StatusCode: details.Status, ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header: http.Header{
			"Content-Type": {problem.ContentType}, "Cache-Control": noStoreHeader,
			"Retry-After": {strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds())))},
		},
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
	var out bytes.Buffer
	if err := response.Write(&out); err != nil {
		return nil, fmt.Errorf("write the refusal of a connection: %w", err)
	}
	return out.Bytes(), nil
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, fault.ResourceExhausted, "BODY_TOO_LARGE", "the body may have at most %d bytes", limit)
}

// timeoutHeader is how long the caller waits, in seconds, fractions allowed.
const timeoutHeader = "Request-Timeout"

func timeoutOf(header http.Header) (time.Duration, error) {
	values := header[timeoutHeader]
	if len(values) == 0 {
		return 0, nil
	}
	seconds, err := strconv.ParseFloat(values[0], 64)
	if err != nil || !(seconds > 0) || math.IsInf(seconds, 0) {
		return 0, fault.New(fault.InvalidArgument, "HEADER_INVALID", "the header %s must be a positive number of seconds", timeoutHeader).
			WithField("header."+timeoutHeader, "number", "must be a positive number of seconds")
	}
	return time.Duration(min(seconds, math.MaxInt32) * float64(time.Second)), nil
}

// checkHeaders refuses what cannot be gRPC metadata, which is printable ASCII.
func checkHeaders(header http.Header) error {
	for _, p := range passed {
		for _, value := range header[p.header] {
			for i := range len(value) {
				if value[i] < ' ' || value[i] > '~' {
					return fault.New(fault.InvalidArgument, "HEADER_INVALID", "the header %s has characters that are not printable ASCII", p.header).
						WithField("header."+p.header, "ascii", "must be printable ASCII")
				}
			}
		}
	}
	return nil
}

// checkContentType lets JSON through, and what says nothing. Refusing the types
// that an HTML form can send keeps other sites' forms from making calls.
func checkContentType(header http.Header) error {
	if encoding := header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return refuse(http.StatusUnsupportedMediaType, fault.InvalidArgument, "CONTENT_ENCODING_UNSUPPORTED", "the body must not be compressed")
	}
	value := header.Get("Content-Type")
	if value == "" || value == "application/json" {
		return nil
	}
	media, parameters, _ := strings.Cut(value, ";")
	media = strings.ToLower(strings.TrimSpace(media))
	json := media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
	_, charset, hasCharset := strings.Cut(strings.ToLower(parameters), "charset=")
	if json && (!hasCharset || strings.HasPrefix(strings.Trim(charset, `" `), "utf-8")) {
		return nil
	}
	return refuse(http.StatusUnsupportedMediaType, fault.InvalidArgument, "CONTENT_TYPE_UNSUPPORTED", "the body must be JSON in UTF-8 (Content-Type: application/json)")
}

// checkAccept refuses only callers that say they cannot read what they would get.
func checkAccept(header http.Header, streaming bool) error {
	values := header["Accept"]
	if len(values) == 0 {
		return nil
	}
	for _, value := range values {
		value = strings.ToLower(value)
		if strings.Contains(value, "*/*") || strings.Contains(value, "application/*") || strings.Contains(value, "json") {
			return nil
		}
	}
	offer := jsonType
	if streaming {
		offer = ndjsonType
	}
	return refuse(http.StatusNotAcceptable, fault.InvalidArgument, "NOT_ACCEPTABLE", "the answer is %s, which the Accept header rules out", offer)
}
