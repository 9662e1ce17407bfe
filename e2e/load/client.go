package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// ServedBy is the response header that names the instance that answered.
const ServedBy = "x-served-by"

// retryPolicy is what any client of the gateways should have: they are two, and
// a call declared idempotent may be sent again to the other one.
const retryPolicy = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [
      {"service": "marquee.account.v1.AccountService", "method": "GetAccount"},
      {"service": "marquee.account.v1.AccountService", "method": "GetSigningKeys"},
      {"service": "marquee.account.v1.AccountService", "method": "SignUp"},
      {"service": "marquee.echo.v1.EchoService", "method": "Echo"}
    ],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.02s", "maxBackoff": "0.2s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// DialGRPC connects to the gateways' gRPC doors, addresses as host:port, the
// way a client should: all of them, round robin, repeating idempotent calls.
func DialGRPC(addresses ...string) (*grpc.ClientConn, error) {
	r := manual.NewBuilderWithScheme("gateways")
	state := resolver.State{}
	for _, a := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a})
	}
	r.InitialState(state)
	return grpc.NewClient("gateways:///all",
		grpc.WithResolvers(r),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(retryPolicy),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
}

// GRPC makes an Op of a unary call; call gets an option that collects who served it.
func GRPC(name string, call func(ctx context.Context, opts ...grpc.CallOption) error) Op {
	return Op{Name: name, Call: func(ctx context.Context) (string, error) {
		var header metadata.MD
		err := call(ctx, grpc.Header(&header))
		if by := header.Get(ServedBy); len(by) > 0 {
			return by[0], err
		}
		return "", err
	}}
}

// REST is a client of the gateways' HTTP doors that holds all their addresses.
type REST struct {
	bases []string
	http  *http.Client
	next  atomic.Uint64
}

// NewREST makes a client; bases are URLs such as http://127.0.0.1:8080.
func NewREST(bases ...string) *REST {
	return &REST{bases: bases, http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     30 * time.Second,
	}}}
}

// Close ends idle connections.
func (c *REST) Close() { c.http.CloseIdleConnections() }

// Request is one REST call.
type Request struct {
	Method, Path, Token string
	Body                any // marshalled to JSON unless nil
	// Idempotent calls are repeated on another gateway when one cannot be
	// reached or says 502, 503 or 504.
	Idempotent bool
}

// ProblemError is a response that is not a success.
type ProblemError struct {
	HTTPStatus int
	Body       []byte
}

func (p *ProblemError) Error() string { return fmt.Sprintf("HTTP %d: %s", p.HTTPStatus, p.Body) }

// Do sends the request and decodes the JSON answer into out unless it is nil.
// It returns the instance that served it. An answer other than 2xx is a *ProblemError.
func (c *REST) Do(ctx context.Context, r Request, out any) (servedBy string, err error) {
	var body []byte
	if r.Body != nil {
		if body, err = json.Marshal(r.Body); err != nil {
			return "", fmt.Errorf("marshal the body: %w", err)
		}
	}
	tries := 1
	if r.Idempotent {
		tries = 4
	}
	first := c.next.Add(1)
	for try := range uint64(tries) {
		if try > 0 {
			select {
			case <-ctx.Done():
				return "", errors.Join(err, ctx.Err())
			case <-time.After(20 * time.Millisecond << try):
			}
		}
		base := c.bases[(first+try)%uint64(len(c.bases))]
		if servedBy, err = c.once(ctx, base, r, body, out); !repeatable(err) {
			return servedBy, err
		}
	}
	return servedBy, err
}

func (c *REST) once(ctx context.Context, base string, r Request, body []byte, out any) (string, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, base+r.Path, bytes.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("make the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	by := resp.Header.Get(ServedBy)
	if resp.StatusCode/100 != 2 {
		return by, &ProblemError{HTTPStatus: resp.StatusCode, Body: answer}
	}
	if out == nil {
		return by, nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return by, fmt.Errorf("decode %q: %w", answer, err)
	}
	return by, nil
}

// repeatable says whether another gateway may succeed where this one failed.
func repeatable(err error) bool {
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false
	}
	if p := (*ProblemError)(nil); errors.As(err, &p) {
		return p.HTTPStatus == http.StatusBadGateway || p.HTTPStatus == http.StatusServiceUnavailable || p.HTTPStatus == http.StatusGatewayTimeout
	}
	return true
}
