package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/marquee-ads/marquee/platform/fault/problem"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

func requireProblem(t testing.TB, response *http.Response, body string, status int, reason string) problem.Details {
	t.Helper()
	require.Equal(t, status, response.StatusCode, body)
	require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
	require.NotEmpty(t, response.Header.Get("X-Request-Id"))
	var d problem.Details
	require.NoError(t, json.Unmarshal([]byte(body), &d), body)
	require.Equal(t, reason, d.Reason, body)
	require.Equal(t, status, d.Status, body)
	require.NotEmpty(t, d.Title)
	require.Equal(t, response.Header.Get("X-Request-Id"), d.RequestID)
	return d
}

func TestREST(t *testing.T) {
	backend := startEcho(t)
	gw := startOne(t, backend)

	t.Run("Get", func(t *testing.T) {
		response, body := gw.do(t, "GET", "/v1/echo/hello%20you", "")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.JSONEq(t, `{"text":"hello you","instanceId":"`+backend.address+`"}`, body)
		require.Equal(t, "application/json", response.Header.Get("Content-Type"))
		require.Equal(t, strconv.Itoa(len(body)), response.Header.Get("Content-Length"))
		require.Equal(t, backend.address, response.Header.Get("X-Served-By"))
		require.NotEmpty(t, response.Header.Get("X-Request-Id"))
		require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
	})
	t.Run("Head", func(t *testing.T) {
		response, body := gw.do(t, "HEAD", "/v1/echo/hello", "")
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Empty(t, body)
		require.NotEqual(t, "0", response.Header.Get("Content-Length"))
	})
	t.Run("Post", func(t *testing.T) {
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON;charset=\"UTF-8\"", "application/vnd.api+json"} {
			response, body := gw.do(t, "POST", "/v1/echo", `{"text":"ü"}`, "Content-Type", contentType, "X-Request-Id", "mine")
			require.Equal(t, http.StatusOK, response.StatusCode, body)
			require.JSONEq(t, `{"text":"ü","instanceId":"`+backend.address+`"}`, body)
			require.Equal(t, "mine", response.Header.Get("X-Request-Id"))
		}
	})
	t.Run("PostWithoutABody", func(t *testing.T) {
		response, body := gw.do(t, "POST", "/v1/echo", "")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
	})
	t.Run("Options", func(t *testing.T) {
		response, body := gw.do(t, "OPTIONS", "/v1/echo/x", "")
		require.Equal(t, http.StatusNoContent, response.StatusCode, body)
		require.Equal(t, "GET, HEAD, OPTIONS", response.Header.Get("Allow"))
	})
	t.Run("HTTP2", func(t *testing.T) {
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		client := &http.Client{Transport: &http.Transport{Protocols: &protocols}}
		defer client.CloseIdleConnections()
		response, err := client.Get(gw.url + "/v1/echo/x")
		require.NoError(t, err)
		defer response.Body.Close()
		require.Equal(t, 2, response.ProtoMajor)
		require.Equal(t, http.StatusOK, response.StatusCode)
	})
	t.Run("Stream", func(t *testing.T) {
		response, body := gw.do(t, "GET", "/v1/repeat/x?count=3", "", "Accept", "application/x-ndjson")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.Equal(t, "application/x-ndjson", response.Header.Get("Content-Type"))
		require.Equal(t, backend.address, response.Header.Get("X-Served-By"))
		require.Equal(t, strings.Repeat(`{"result":{"text":"x"}}`+"\n", 3), body)
	})
	t.Run("StreamWithoutMessages", func(t *testing.T) {
		response, body := gw.do(t, "GET", "/v1/repeat/x", "")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.Equal(t, "application/x-ndjson", response.Header.Get("Content-Type"))
		require.Empty(t, body)
	})
}

func TestBadRequests(t *testing.T) {
	backend := startEcho(t)
	gw := startOne(t, backend, func(c *gateway.Config) { c.MaxBodyBytes = 1000 })
	const asJSON = "Content-Type\napplication/json"
	for _, tt := range []struct {
		name, method, path, body, header string
		status                           int
		reason, field                    string
	}{
		{"MalformedJSON", "POST", "/v1/echo", `{"text":`, asJSON, 400, "JSON_MALFORMED", ""},
		{"NotAnObject", "POST", "/v1/echo", `[]`, asJSON, 400, "FIELD_TYPE", ""},
		{"UnknownField", "POST", "/v1/echo", `{"colour":"blue"}`, asJSON, 400, "FIELD_UNKNOWN", "colour"},
		{"WrongType", "POST", "/v1/echo", `{"text":5}`, asJSON, 400, "FIELD_TYPE", "text"},
		{"NumberOutOfRange", "POST", "/v1/echo", `{"fail_with":99999999999}`, asJSON, 400, "FIELD_VALUE", "fail_with"},
		{"InvalidUTF8", "POST", "/v1/echo", "{\"text\":\"\xff\"}", asJSON, 400, "UTF8_INVALID", "text"},
		{"InvalidUTF8InPath", "GET", "/v1/echo/%ff", "", "", 400, "UTF8_INVALID", "text"},
		{"UnknownQueryParameter", "GET", "/v1/echo/x?colour=blue", "", "", 400, "QUERY_UNKNOWN", "colour"},
		{"WrongTypeInQuery", "GET", "/v1/repeat/x?count=many", "", "", 400, "FIELD_VALUE", "count"},
		{"Oversized", "POST", "/v1/echo", `{"text":"` + strings.Repeat("x", 1000) + `"}`, asJSON, 413, "BODY_TOO_LARGE", ""},
		{"Form", "POST", "/v1/echo", `text=x`, "Content-Type\napplication/x-www-form-urlencoded", 415, "CONTENT_TYPE_UNSUPPORTED", ""},
		{"OtherCharset", "POST", "/v1/echo", `{}`, "Content-Type\napplication/json; charset=latin1", 415, "CONTENT_TYPE_UNSUPPORTED", ""},
		{"CompressedBody", "POST", "/v1/echo", `{}`, asJSON + "\nContent-Encoding\ngzip", 415, "CONTENT_ENCODING_UNSUPPORTED", ""},
		{"NotAcceptable", "GET", "/v1/echo/x", "", "Accept\ntext/html", 406, "NOT_ACCEPTABLE", ""},
		{"UnknownPath", "GET", "/v1/nothing", "", "", 404, "ROUTE_UNKNOWN", ""},
		{"Root", "GET", "/", "", "", 404, "ROUTE_UNKNOWN", ""},
		{"NativePath", "POST", "/marquee.echo.v1.EchoService/Internal", "{}", asJSON, 404, "ROUTE_UNKNOWN", ""},
		{"WrongMethod", "DELETE", "/v1/echo", "", "", 405, "METHOD_NOT_ALLOWED", ""},
		{"BadTimeout", "GET", "/v1/echo/x", "", "Request-Timeout\nsoon", 400, "HEADER_INVALID", "header.Request-Timeout"},
		{"HeaderThatIsNoMetadata", "GET", "/v1/echo/x", "", "Authorization\nBearer \xc3\xbc", 400, "HEADER_INVALID", "header.Authorization"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var header []string
			if tt.header != "" {
				header = strings.Split(tt.header, "\n")
			}
			response, body := gw.do(t, tt.method, tt.path, tt.body, header...)
			var d problem.Details
			require.NoError(t, json.Unmarshal([]byte(body), &d), body)
			requireProblem(t, response, body, tt.status, tt.reason)
			if tt.field != "" {
				require.Len(t, d.Errors, 1, body)
				require.Equal(t, tt.field, d.Errors[0].Field, body)
			}
			if tt.status == http.StatusMethodNotAllowed {
				require.Equal(t, "POST, OPTIONS", response.Header.Get("Allow"))
			}
		})
	}
	require.Zero(t, backend.calls.Load(), "a bad request reached the service")
}

func TestBodies(t *testing.T) {
	gw := startOne(t, startEcho(t), func(c *gateway.Config) {
		c.BodyTimeout = 200 * time.Millisecond
		c.MaxBodyBytes = 10_000
	})
	// raw sends bytes on a connection of its own and reads one response.
	raw := func(t *testing.T, parts ...string) (*http.Response, string, *bufio.Reader) {
		conn, err := net.Dial("tcp", gw.HTTPAddr().String())
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		for _, part := range parts {
			_, err = io.WriteString(conn, part)
			require.NoError(t, err)
		}
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, nil)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response, string(body), reader
	}
	const head = "POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	t.Run("Slow", func(t *testing.T) {
		began := time.Now()
		response, body, reader := raw(t, head+"Content-Length: 20\r\n\r\n", `{"text"`)
		requireProblem(t, response, body, http.StatusRequestTimeout, "BODY_TOO_SLOW")
		require.True(t, response.Close)
		require.Less(t, time.Since(began), 2*time.Second)
		_, err := reader.ReadByte()
		require.ErrorIs(t, err, io.EOF, "the connection stays open")
	})
	t.Run("AnnouncedTooLarge", func(t *testing.T) {
		response, body, _ := raw(t, head+"Content-Length: 999999999\r\n\r\n")
		requireProblem(t, response, body, http.StatusRequestEntityTooLarge, "BODY_TOO_LARGE")
	})
	t.Run("ChunkedTooLarge", func(t *testing.T) {
		chunk := "1000\r\n" + strings.Repeat(" ", 0x1000) + "\r\n"
		response, body, _ := raw(t, head+"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
		requireProblem(t, response, body, http.StatusRequestEntityTooLarge, "BODY_TOO_LARGE")
	})
	t.Run("Chunked", func(t *testing.T) {
		response, body, _ := raw(t, head+"Transfer-Encoding: chunked\r\n\r\n", "e\r\n{\"text\":\"abc\"}\r\n0\r\n\r\n")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.Contains(t, body, `"text":"abc"`)
	})
	t.Run("ConnectionIsUsableAfterwards", func(t *testing.T) {
		client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
		defer client.CloseIdleConnections()
		for range 3 {
			response, err := client.Post(gw.url+"/v1/echo", "application/json", strings.NewReader(`{"text":"x"}`))
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, response.Body)
			require.NoError(t, err)
			response.Body.Close()
			require.Equal(t, http.StatusOK, response.StatusCode)
			time.Sleep(250 * time.Millisecond) // longer than a body may take
		}
	})
	t.Run("OversizedHeader", func(t *testing.T) {
		response, _, _ := raw(t, "GET /v1/echo/x HTTP/1.1\r\nHost: x\r\nX-Big: "+strings.Repeat("x", 40<<10)+"\r\n\r\n")
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
	})
}

func TestRESTErrorsOfTheService(t *testing.T) {
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onEcho = func(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			st, err := status.New(codes.Code(r.GetFailWith()), "as asked").WithDetails(
				&errdetails.ErrorInfo{Reason: "AS_ASKED", Domain: "marquee", Metadata: map[string]string{"a": "b"}},
				&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "lines[2].slot", Description: "is taken", Reason: "free"}}},
				&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
			if err != nil {
				return nil, err
			}
			return nil, st.Err()
		}
	}))
	response, body := gw.do(t, "GET", "/v1/echo/x?fail_with=6", "")
	d := requireProblem(t, response, body, http.StatusConflict, "AS_ASKED")
	require.Equal(t, "as asked", d.Detail)
	require.Equal(t, "ALREADY_EXISTS", d.Code)
	require.Equal(t, "/v1/echo/x", d.Instance)
	require.Equal(t, []problem.Field{{Field: "lines[2].slot", Description: "is taken", Rule: "free"}}, d.Errors)
	require.Equal(t, map[string]string{"a": "b"}, d.Metadata)
	require.Equal(t, "3", response.Header.Get("Retry-After"))
	require.NotEmpty(t, response.Header.Get("X-Served-By"))

	for code, want := range map[codes.Code]int{codes.InvalidArgument: 400, codes.Unauthenticated: 401, codes.PermissionDenied: 403, codes.NotFound: 404, codes.Internal: 500, codes.Unavailable: 503} {
		response, body := gw.do(t, "GET", fmt.Sprintf("/v1/echo/x?fail_with=%d", code), "")
		requireProblem(t, response, body, want, "AS_ASKED")
	}
}

func TestRESTHeadersAndDeadline(t *testing.T) {
	type seen struct {
		md   metadata.MD
		left time.Duration
	}
	calls := make(chan seen, 1)
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			deadline, _ := ctx.Deadline()
			calls <- seen{md, time.Until(deadline)}
			return &echov1.EchoResponse{}, nil
		}
	}))
	response, body := gw.do(t, "GET", "/v1/echo/x", "", "Authorization", "Bearer t", "Traceparent", "00-1-2-01",
		"Cookie", "a=b", "X-Forwarded-For", "1.2.3.4", "X-Marquee-Caller", "root", "Request-Timeout", "2.5")
	require.Equal(t, http.StatusOK, response.StatusCode, body)
	got := <-calls
	require.Equal(t, []string{"Bearer t"}, got.md["authorization"])
	require.Equal(t, []string{"00-1-2-01"}, got.md["traceparent"])
	require.Equal(t, []string{"127.0.0.1"}, got.md["x-forwarded-for"])
	require.Equal(t, []string{response.Header.Get("X-Request-Id")}, got.md["x-request-id"])
	require.NotContains(t, got.md, "cookie")
	require.NotContains(t, got.md, "x-marquee-caller")
	require.Greater(t, got.left, time.Second)
	require.LessOrEqual(t, got.left, 2500*time.Millisecond)
}

func TestRESTDeadlineAndCancellation(t *testing.T) {
	arrived, cancelled := make(chan struct{}, 4), make(chan struct{}, 4)
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onEcho = func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			arrived <- struct{}{}
			<-ctx.Done()
			cancelled <- struct{}{}
			return nil, ctx.Err()
		}
	}))
	response, body := gw.do(t, "GET", "/v1/echo/x", "", "Request-Timeout", "0.05")
	requireProblem(t, response, body, http.StatusGatewayTimeout, "DEADLINE_EXCEEDED")
	receive(t, arrived)
	receive(t, cancelled)

	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, "GET", gw.url+"/v1/echo/x", nil)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			response.Body.Close()
		}
		ended <- err
	}()
	receive(t, arrived)
	cancel()
	require.ErrorIs(t, receive(t, ended), context.Canceled)
	receive(t, cancelled)
}

func TestRESTStreams(t *testing.T) {
	left := make(chan struct{})
	gw := startOne(t, startEcho(t, func(e *echo) {
		e.onRepeat = func(r *echov1.RepeatRequest, s grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
			switch r.GetText() {
			case "refused":
				return status.Error(codes.NotFound, "no such text")
			case "broken":
				if err := s.Send(&echov1.RepeatResponse{Text: "first"}); err != nil {
					return err
				}
				return status.Error(codes.DataLoss, "lost the rest")
			default:
				if err := s.Send(&echov1.RepeatResponse{Text: "first"}); err != nil {
					return err
				}
				<-s.Context().Done()
				close(left)
				return s.Context().Err()
			}
		}
	}))
	t.Run("RefusedBeforeItBegan", func(t *testing.T) {
		response, body := gw.do(t, "GET", "/v1/repeat/refused", "")
		requireProblem(t, response, body, http.StatusNotFound, "NOT_FOUND")
	})
	t.Run("BrokenAfterwards", func(t *testing.T) {
		response, body := gw.do(t, "GET", "/v1/repeat/broken", "")
		require.Equal(t, http.StatusOK, response.StatusCode)
		lines := strings.Split(strings.TrimSpace(body), "\n")
		require.Len(t, lines, 2)
		require.Equal(t, `{"result":{"text":"first"}}`, lines[0])
		var last struct{ Error problem.Details }
		require.NoError(t, json.Unmarshal([]byte(lines[1]), &last))
		require.Equal(t, "DATA_LOSS", last.Error.Code)
		require.Equal(t, "lost the rest", last.Error.Detail)
	})
	t.Run("MessagesComeAsTheyAreSent", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, "GET", gw.url+"/v1/repeat/endless", nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		line, err := bufio.NewReader(response.Body).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, `{"result":{"text":"first"}}`+"\n", line)
		cancel()
		receive(t, left)
	})
}

func TestRESTAnswersWhenNobodyServes(t *testing.T) {
	backend := startEcho(t)
	gw := startOne(t, backend)
	backend.server.Stop()
	response, body := gw.do(t, "GET", "/v1/echo/x", "")
	d := requireProblem(t, response, body, http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE")
	require.NotContains(t, body, backend.address)
	require.Equal(t, "1", response.Header.Get("Retry-After"))
	require.Contains(t, d.Detail, "echo")
}
