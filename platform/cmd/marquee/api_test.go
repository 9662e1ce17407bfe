package main

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// echo is a server with real streams and one refusing method.
type echo struct {
	echov1.UnimplementedEchoServiceServer
}

func (echo) Echo(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	if r.GetFailWith() == 0 {
		return &echov1.EchoResponse{Text: r.GetText(), InstanceId: "one"}, nil
	}
	s, err := status.New(codes.InvalidArgument, "no good").WithDetails(
		&errdetails.ErrorInfo{Reason: "VALIDATION_FAILED", Domain: "marquee"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "text", Description: "is too long"}}},
		&errdetails.RequestInfo{RequestId: "req-1"})
	if err != nil {
		return nil, err
	}
	return nil, s.Err()
}

func (echo) Whoami(ctx context.Context, _ *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return &echov1.WhoamiResponse{AccountId: strings.Join(md.Get("authorization"), ",")}, nil
}

func (echo) Repeat(r *echov1.RepeatRequest, stream grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
	for range r.GetCount() {
		if err := stream.Send(&echov1.RepeatResponse{Text: r.GetText()}); err != nil {
			return err
		}
	}
	return nil
}

func (echo) Join(stream grpc.ClientStreamingServer[echov1.JoinRequest, echov1.JoinResponse]) error {
	var text string
	for {
		r, err := stream.Recv()
		if err != nil {
			return stream.SendAndClose(&echov1.JoinResponse{Text: text})
		}
		text += r.GetText()
	}
}

func serveEcho(t *testing.T) *grpc.ClientConn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	echov1.RegisterEchoServiceServer(server, echo{})
	accountv1.RegisterAccountServiceServer(server, accountv1.UnimplementedAccountServiceServer{})
	reflection.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-served)
	})
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

func TestCall(t *testing.T) {
	conn := serveEcho(t)
	a, err := reflectAPI(t.Context(), conn)
	require.NoError(t, err)
	for _, c := range []struct {
		name, method, request, token string
		want                         []string
	}{
		{
			name: "Unary", method: "marquee.echo.v1.EchoService/Echo", request: `{"text":"hi"}`,
			want: []string{`{"text":"hi","instanceId":"one"}`},
		},
		{name: "ShortName", method: "EchoService.Echo", request: `{"text":"hi"}`, want: []string{`{"text":"hi","instanceId":"one"}`}},
		{name: "EmptyRequest", method: "EchoService/Echo", want: []string{`{"text":"","instanceId":"one"}`}},
		{name: "Token", method: "EchoService/Whoami", token: "abc", want: []string{`{"accountId":"Bearer abc","callingService":""}`}},
		{name: "ServerStream", method: "EchoService/Repeat", request: `{"text":"x","count":2}`, want: []string{`{"text":"x"}`, `{"text":"x"}`}},
		{name: "ClientStream", method: "EchoService/Join", request: `{"text":"a"} {"text":"b"}`, want: []string{`{"text":"ab"}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, err := a.method(c.method)
			require.NoError(t, err)
			var got []string
			err = a.call(bearer(t.Context(), c.token), conn, method, strings.NewReader(c.request), func(json []byte) error {
				got = append(got, string(json))
				return nil
			})
			require.NoError(t, err)
			require.Len(t, got, len(c.want))
			for i := range got {
				require.JSONEq(t, c.want[i], got[i])
			}
		})
	}
}

func TestCallRefused(t *testing.T) {
	conn := serveEcho(t)
	a, err := reflectAPI(t.Context(), conn)
	require.NoError(t, err)
	method, err := a.method("EchoService/Echo")
	require.NoError(t, err)
	none := func([]byte) error { return nil }

	err = a.call(t.Context(), conn, method, strings.NewReader(`{"fail_with":3}`), none)
	require.Equal(t, `INVALID_ARGUMENT: no good
  reason: VALIDATION_FAILED (marquee)
  field text: is too long
  request id: req-1`, explainStatus(err, a.resolver()))

	for request, want := range map[string]string{
		`{"txt":1}`: "unknown field",
		`{"text":`:  "not JSON",
		`{} {}`:     "takes one request, not 2",
	} {
		err = a.call(t.Context(), conn, method, strings.NewReader(request), none)
		require.ErrorContains(t, err, want)
	}

	_, err = a.method("EchoService/Nothing")
	require.ErrorContains(t, err, "it has Echo, Whoami")
	_, err = a.method("NoService/Echo")
	require.ErrorContains(t, err, "marquee.account.v1.AccountService, marquee.echo.v1.EchoService")
	_, err = a.method("Echo")
	require.ErrorContains(t, err, "SERVICE/METHOD")
}

func TestProbe(t *testing.T) {
	a, err := reflectAPI(t.Context(), serveEcho(t))
	require.NoError(t, err)
	for service, want := range map[string][]string{
		"account": {"/marquee.account.v1.AccountService/GetSigningKeys", "/marquee.account.v1.AccountService/GetJSONWebKeySet"},
		"echo":    {"/marquee.echo.v1.EchoService/Echo"},
	} {
		method, err := a.probe(service)
		require.NoError(t, err)
		require.Contains(t, want, methodPath(method))
	}
	_, err = a.probe("gateway")
	require.ErrorContains(t, err, `nothing of the service "gateway"`)
	require.ErrorContains(t, err, "--method")
}

func TestDescribe(t *testing.T) {
	a, err := reflectAPI(t.Context(), serveEcho(t))
	require.NoError(t, err)

	text, err := a.describe("marquee.account.v1.AccountService/GetAccount")
	require.NoError(t, err)
	require.Equal(t, `// caller: account; idempotency: no_side_effects
// GET /v1/accounts/{account_id}
rpc GetAccount(marquee.account.v1.GetAccountRequest) returns (marquee.account.v1.GetAccountResponse);

message marquee.account.v1.GetAccountRequest {
  string account_id = 1;
}

message marquee.account.v1.GetAccountResponse {
  marquee.account.v1.Account account = 1;
}

message marquee.account.v1.Account {
  string account_id = 1;
  string name = 2;
  google.protobuf.Timestamp create_time = 3;
}
`, text)

	text, err = a.describe("EchoService")
	require.NoError(t, err)
	require.Contains(t, text, "  // caller: service echo-caller; idempotency: idempotency_unknown\n  rpc Internal(")
	require.Contains(t, text, "rpc Chat(stream marquee.echo.v1.ChatRequest) returns (stream marquee.echo.v1.ChatResponse);")

	_, err = a.describe("nothing.Here")
	require.ErrorContains(t, err, "marquee list")
}
