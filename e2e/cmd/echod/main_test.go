package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/service"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// account publishes one key.
type account struct {
	accountv1.UnimplementedAccountServiceServer
	public ed25519.PublicKey
}

func (a account) GetSigningKeys(context.Context, *accountv1.GetSigningKeysRequest) (*accountv1.GetSigningKeysResponse, error) {
	return &accountv1.GetSigningKeysResponse{Keys: []*accountv1.SigningKey{{KeyId: "k", PublicKey: a.public}}}, nil
}

// start runs echod on free ports and returns a client of it.
func start(t *testing.T, change func(*config)) echov1.EchoServiceClient {
	cfg, err := service.Parse[config]("echo", []string{
		"--mesh=plaintext", "--mode=test", "--environment=test", "--drain-delay=0s", "--log-level=warn",
	}, io.Discard)
	require.NoError(t, err)
	change(&cfg)
	listening := make(chan service.Addresses, 1)
	cfg.OnListening = func(a service.Addresses) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, cfg) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	select {
	case a := <-listening:
		conn, err := grpc.NewClient(a.Mesh, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return echov1.NewEchoServiceClient(conn)
	case err := <-done:
		done <- nil
		t.Fatalf("echod did not start: %v", err)
		return nil
	}
}

func callCtx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCalls(t *testing.T) {
	client := start(t, func(*config) {})
	t.Run("Echo", func(t *testing.T) {
		got, err := client.Echo(callCtx(t), &echov1.EchoRequest{Text: "hello", DelayMs: 10})
		require.NoError(t, err)
		require.Equal(t, "hello", got.GetText())
		require.NotEmpty(t, got.GetInstanceId())
	})
	t.Run("EchoFailsAsAsked", func(t *testing.T) {
		for code := codes.Code(1); code <= codes.Unauthenticated; code++ {
			_, err := client.Echo(callCtx(t), &echov1.EchoRequest{FailWith: int32(code)})
			require.Equal(t, code, status.Code(err))
			require.Equal(t, "ECHO_FAILED", grpcfault.FromStatus(status.Convert(err)).Reason)
		}
	})
	t.Run("EchoLeavesWithItsCaller", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(callCtx(t), 20*time.Millisecond)
		defer cancel()
		_, err := client.Echo(ctx, &echov1.EchoRequest{DelayMs: 60000})
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	})
	t.Run("Repeat", func(t *testing.T) {
		stream, err := client.Repeat(callCtx(t), &echov1.RepeatRequest{Text: "x", Count: 3, IntervalMs: 1})
		require.NoError(t, err)
		for range 3 {
			got, err := stream.Recv()
			require.NoError(t, err)
			require.Equal(t, "x", got.GetText())
		}
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
	})
	t.Run("RepeatForever", func(t *testing.T) {
		ctx, cancel := context.WithCancel(callCtx(t))
		stream, err := client.Repeat(ctx, &echov1.RepeatRequest{Text: "x"})
		require.NoError(t, err)
		for range 1000 {
			_, err := stream.Recv()
			require.NoError(t, err)
		}
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
		require.Equal(t, codes.Canceled, status.Code(err))
	})
	t.Run("Join", func(t *testing.T) {
		stream, err := client.Join(callCtx(t))
		require.NoError(t, err)
		for _, text := range []string{"a", "b", "c"} {
			require.NoError(t, stream.Send(&echov1.JoinRequest{Text: text}))
		}
		got, err := stream.CloseAndRecv()
		require.NoError(t, err)
		require.Equal(t, "abc", got.GetText())
	})
	t.Run("JoinIsBounded", func(t *testing.T) {
		stream, err := client.Join(callCtx(t))
		require.NoError(t, err)
		text := string(make([]byte, 4096))
		for range 300 {
			if err := stream.Send(&echov1.JoinRequest{Text: text}); errors.Is(err, io.EOF) {
				break
			}
		}
		_, err = stream.CloseAndRecv()
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("Chat", func(t *testing.T) {
		stream, err := client.Chat(callCtx(t))
		require.NoError(t, err)
		for _, text := range []string{"a", "b"} {
			require.NoError(t, stream.Send(&echov1.ChatRequest{Text: text}))
			got, err := stream.Recv()
			require.NoError(t, err)
			require.Equal(t, text, got.GetText())
		}
		require.NoError(t, stream.CloseSend())
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
	})
	t.Run("InternalIsForServices", func(t *testing.T) {
		_, err := client.Internal(callCtx(t), &echov1.InternalRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
	})
}

func TestWhoami(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
		"iss": auth.Issuer, "aud": "test", "sub": "acc_1", "sid": "s", "exp": time.Now().Add(time.Minute).Unix(),
	})
	token.Header["kid"] = "k"
	signed, err := token.SignedString(private)
	require.NoError(t, err)
	signedIn := func(t *testing.T) context.Context {
		return metadata.AppendToOutgoingContext(callCtx(t), "authorization", "Bearer "+signed)
	}

	t.Run("KeysFromAccount", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		server := grpc.NewServer()
		accountv1.RegisterAccountServiceServer(server, account{public: public})
		go server.Serve(listener)
		defer server.Stop()
		client := start(t, func(c *config) {
			c.KeysFrom = "account"
			c.Upstreams = map[string][]string{"account": {listener.Addr().String()}}
		})
		require.Eventually(t, func() bool {
			got, err := client.Whoami(signedIn(t), &echov1.WhoamiRequest{})
			return err == nil && got.GetAccountId() == "acc_1"
		}, 5*time.Second, 10*time.Millisecond, "the keys do not arrive")
		_, err = client.Whoami(callCtx(t), &echov1.WhoamiRequest{})
		require.Equal(t, codes.Unauthenticated, status.Code(err))
	})
	t.Run("WithoutKeys", func(t *testing.T) {
		_, err := start(t, func(*config) {}).Whoami(signedIn(t), &echov1.WhoamiRequest{})
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.Equal(t, "SIGNING_KEYS_UNAVAILABLE", grpcfault.FromStatus(status.Convert(err)).Reason)
	})
}
