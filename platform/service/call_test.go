package service_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/service"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

func TestRequestID(t *testing.T) {
	var seen string
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{
		echo: func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			seen = service.RequestID(ctx)
			if r.GetFailWith() != 0 {
				return nil, errors.New("broken")
			}
			return &echov1.EchoResponse{}, nil
		},
	}))
	client := r.client()
	for _, test := range []struct {
		name, sent string
		kept       bool
	}{
		{name: "Made"},
		{name: "Taken", sent: "abc-123", kept: true},
		{name: "LongestTaken", sent: strings.Repeat("x", 128), kept: true},
		{name: "TooLong", sent: strings.Repeat("x", 129)},
		{name: "WithSpaces", sent: "a b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := callCtx(t)
			if test.sent != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", test.sent)
			}
			var header metadata.MD
			_, err := client.Echo(ctx, &echov1.EchoRequest{FailWith: 1}, grpc.Header(&header))
			require.Equal(t, codes.Internal, status.Code(err))
			require.Equal(t, []string{seen}, header.Get("x-request-id"))
			require.Equal(t, seen, grpcfault.RequestID(status.Convert(err)))
			if test.kept {
				require.Equal(t, test.sent, seen)
			} else {
				require.Regexp(t, regexp.MustCompile(`^[A-Z2-7]{26}$`), seen)
			}
			require.Len(t, r.logs.lines(t, "internal error", seen, "broken"), 1, "logged once, findable by its id")
		})
	}
	t.Run("ServedBy", func(t *testing.T) {
		var header metadata.MD
		_, err := client.Echo(callCtx(t), &echov1.EchoRequest{}, grpc.Header(&header))
		require.NoError(t, err)
		require.Equal(t, []string{r.svc.InstanceID()}, header.Get("x-served-by"))
	})
}

func TestErrors(t *testing.T) {
	var answer error
	s := &stub{
		echo: func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error) { return nil, answer },
		repeat: func(*echov1.RepeatRequest, grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
			return answer
		},
	}
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(s))
	client := r.client()
	for _, test := range []struct {
		name    string
		err     error
		code    codes.Code
		reason  string
		message string
		logged  bool
	}{
		{name: "Fault", err: fault.New(fault.AlreadyExists, "NAME_TAKEN", "taken").Because(errors.New("23505")), code: codes.AlreadyExists, reason: "NAME_TAKEN", message: "taken"},
		{name: "WrappedFault", err: fmt.Errorf("signing up: %w", fault.New(fault.Aborted, "X", "no")), code: codes.Aborted, reason: "X", message: "no"},
		{name: "InternalFault", err: fault.New(fault.DataLoss, "GONE", "gone").Because(errors.New("disk")), code: codes.DataLoss, reason: "GONE", message: "gone", logged: true},
		{name: "Unknown", err: errors.New("dial tcp 10.0.0.1"), code: codes.Internal, reason: "INTERNAL", message: "internal error", logged: true},
		{name: "OwnStatus", err: status.Error(codes.NotFound, "nope"), code: codes.NotFound, reason: "NOT_FOUND", message: "nope"},
		{name: "DependencyAway", err: fmt.Errorf("asking: %w", status.Error(codes.Unavailable, "10.0.0.1 refused")), code: codes.Unavailable, reason: "DEPENDENCY_UNAVAILABLE", message: "a service that this one needs is not available"},
		{name: "DependencyBusy", err: fmt.Errorf("asking: %w", status.Error(codes.ResourceExhausted, "q")), code: codes.ResourceExhausted, reason: "DEPENDENCY_BUSY", message: "a service that this one needs is busy"},
		{name: "DependencySaysNotFound", err: fmt.Errorf("asking: %w", status.Error(codes.NotFound, "row")), code: codes.Internal, reason: "INTERNAL", message: "internal error", logged: true},
		{name: "OwnTimeout", err: fmt.Errorf("querying: %w", context.DeadlineExceeded), code: codes.DeadlineExceeded, reason: "DEADLINE_EXCEEDED", message: "the deadline passed before the answer was there"},
		{name: "OwnCancel", err: fmt.Errorf("querying: %w", context.Canceled), code: codes.Internal, reason: "INTERNAL", message: "internal error", logged: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer = test.err
			check := func(t *testing.T, id string, err error) {
				st := status.Convert(err)
				require.Equal(t, test.code, st.Code())
				require.Equal(t, test.message, st.Message())
				require.Equal(t, test.reason, grpcfault.FromStatus(st).Reason)
				require.Equal(t, id, grpcfault.RequestID(st))
				logged := 0
				if test.logged {
					logged = 1
				}
				require.Len(t, r.logs.lines(t, "[ERROR]", id), logged)
			}
			t.Run("Unary", func(t *testing.T) {
				id := "unary-" + test.name
				_, err := client.Echo(metadata.AppendToOutgoingContext(callCtx(t), "x-request-id", id), &echov1.EchoRequest{})
				check(t, id, err)
			})
			t.Run("UnaryWithTheDefaultDeadline", func(t *testing.T) {
				id := "default-" + test.name
				_, err := client.Echo(metadata.AppendToOutgoingContext(t.Context(), "x-request-id", id), &echov1.EchoRequest{})
				check(t, id, err)
			})
			t.Run("Stream", func(t *testing.T) {
				id := "stream-" + test.name
				stream, err := client.Repeat(metadata.AppendToOutgoingContext(callCtx(t), "x-request-id", id), &echov1.RepeatRequest{})
				require.NoError(t, err)
				_, err = stream.Recv()
				check(t, id, err)
			})
		})
	}
}

func TestRecovery(t *testing.T) {
	s := &stub{
		echo: func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error) { panic("oh no") },
		repeat: func(*echov1.RepeatRequest, grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
			var nothing *echov1.RepeatRequest
			return errors.New(nothing.Text)
		},
	}
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(s))
	_, err := r.client().Echo(callCtx(t), &echov1.EchoRequest{})
	require.Equal(t, codes.Internal, status.Code(err))
	require.Equal(t, "internal error", status.Convert(err).Message())
	require.Len(t, r.logs.lines(t, "a method panicked", "oh no", grpcfault.RequestID(status.Convert(err))), 1)
	require.Contains(t, r.logs.text(t), "call_test.go", "the stack")

	stream, err := r.client().Repeat(callCtx(t), &echov1.RepeatRequest{})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, codes.Internal, status.Code(err))
	require.Len(t, r.logs.lines(t, "[ERROR]"), 2, "each panic is logged once")
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, `grpc_server_call_seconds_count{code="INTERNAL",method="/marquee.echo.v1.EchoService/Echo"} 1`)
}

func TestDeadline(t *testing.T) {
	var left time.Duration
	var has bool
	s := &stub{
		echo: func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			deadline, ok := ctx.Deadline()
			left, has = time.Until(deadline), ok
			if r.GetDelayMs() > 0 {
				<-ctx.Done()
				return nil, fmt.Errorf("waiting: %w", ctx.Err())
			}
			return &echov1.EchoResponse{}, nil
		},
		repeat: func(_ *echov1.RepeatRequest, stream grpc.ServerStreamingServer[echov1.RepeatResponse]) error {
			_, has = stream.Context().Deadline()
			return nil
		},
	}
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}, DefaultDeadline: time.Minute, MaxDeadline: 2 * time.Minute}, echo(s))
	client := r.client()
	with := func(d time.Duration) time.Duration {
		ctx := context.Background()
		if d > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		}
		_, err := client.Echo(ctx, &echov1.EchoRequest{})
		require.NoError(t, err)
		require.True(t, has)
		return left
	}
	require.InDelta(t, time.Minute, with(0), float64(5*time.Second), "the default")
	require.InDelta(t, 30*time.Second, with(30*time.Second), float64(5*time.Second), "the caller's")
	require.InDelta(t, 2*time.Minute, with(time.Hour), float64(5*time.Second), "the maximum")

	t.Run("Passes", func(t *testing.T) {
		r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}, DefaultDeadline: 20 * time.Millisecond}, echo(s))
		_, err := r.client().Echo(context.Background(), &echov1.EchoRequest{DelayMs: 1})
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.Equal(t, "DEADLINE_EXCEEDED", grpcfault.FromStatus(status.Convert(err)).Reason)
	})
	t.Run("StreamHasNone", func(t *testing.T) {
		stream, err := client.Repeat(context.Background(), &echov1.RepeatRequest{})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.ErrorIs(t, err, io.EOF)
		require.False(t, has)
	})
}

func TestValidation(t *testing.T) {
	reached := 0
	s := &stub{
		echo: func(context.Context, *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			reached++
			return &echov1.EchoResponse{}, nil
		},
		chat: func(stream grpc.BidiStreamingServer[echov1.ChatRequest, echov1.ChatResponse]) error {
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
				if err := stream.Send(&echov1.ChatResponse{Text: m.GetText()}); err != nil {
					return err
				}
			}
		},
	}
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(s))
	t.Run("NamesEachField", func(t *testing.T) {
		_, err := r.client().Echo(callCtx(t), &echov1.EchoRequest{FailWith: 99, DelayMs: -1})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		f := grpcfault.FromStatus(status.Convert(err))
		require.Equal(t, "VALIDATION_FAILED", f.Reason)
		require.Len(t, f.Fields, 2)
		require.Equal(t, "fail_with", f.Fields[0].Path)
		require.Equal(t, "int32.gte_lte", f.Fields[0].Rule)
		require.NotEmpty(t, f.Fields[0].Description)
		require.Equal(t, "delay_ms", f.Fields[1].Path)
		require.Zero(t, reached)
	})
	t.Run("EachMessageOfAStream", func(t *testing.T) {
		stream, err := r.client().Chat(callCtx(t))
		require.NoError(t, err)
		require.NoError(t, stream.Send(&echov1.ChatRequest{Text: "fine"}))
		_, err = stream.Recv()
		require.NoError(t, err)
		require.NoError(t, stream.Send(&echov1.ChatRequest{Text: strings.Repeat("x", 5000)}))
		_, err = stream.Recv()
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.Equal(t, "text", grpcfault.FromStatus(status.Convert(err)).Fields[0].Path)
	})
	t.Run("OversizedMessage", func(t *testing.T) {
		_, err := r.client().Echo(callCtx(t), &echov1.EchoRequest{Text: strings.Repeat("x", 5<<20)})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("UnknownMethod", func(t *testing.T) {
		err := r.conn().Invoke(callCtx(t), "/marquee.echo.v1.EchoService/Nothing", &echov1.EchoRequest{}, &echov1.EchoResponse{})
		require.Equal(t, codes.Unimplemented, status.Code(err))
	})
}

// keys hold one key, let one session be ended, and the roles of one account be
// changed.
type keys struct{ public ed25519.PublicKey }

func (k keys) PublicKey(id string) (ed25519.PublicKey, bool) { return k.public, id == "k" }
func (k keys) SessionEnded(id string) bool                   { return id == "ended" }

func (k keys) RolesVersion(id string) int64 {
	if id == "acc_changed" {
		return 2
	}
	return 0
}

// TestRoles calls methods that need a role, with and without it.
func TestRoles(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	token := func(subject string, roles auth.Roles) string {
		token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, auth.Claims{
			RegisteredClaims: jwt.RegisteredClaims{
				Issuer: auth.Issuer, Audience: jwt.ClaimStrings{"test"}, Subject: subject,
				IssuedAt: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Minute)),
			},
			SessionID: "s", Roles: roles, RolesVersion: 1,
		})
		token.Header["kid"] = "k"
		signed, err := token.SignedString(private)
		require.NoError(t, err)
		return signed
	}
	with := func(token string) context.Context {
		return metadata.AppendToOutgoingContext(callCtx(t), "authorization", "Bearer "+token)
	}
	client := start(t, plaintext(), service.GRPCOptions{Keys: keys{public}}, echo(&stub{
		visit: func(ctx context.Context, r *echov1.VisitRequest) (*echov1.VisitResponse, error) {
			caller, _ := auth.CallerFromContext(ctx)
			role, _ := caller.Role(r.GetOrganisationId())
			return &echov1.VisitResponse{CallerId: caller.ID(), Role: role.Proto()}, nil
		},
		whoami: func(context.Context, *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
			return &echov1.WhoamiResponse{}, nil
		},
		tour: func(stream grpc.BidiStreamingServer[echov1.TourRequest, echov1.TourResponse]) error {
			for {
				if _, err := stream.Recv(); err != nil {
					return err
				}
				if err := stream.Send(&echov1.TourResponse{}); err != nil {
					return err
				}
			}
		},
	})).client()
	everywhere := auth.Roles{"org_1": auth.Owner, "org_2": auth.Operator, "org_3": auth.Viewer}
	for name, test := range map[string]struct {
		token, organisation string
		role                accessv1.Role
		code                codes.Code
		reason              string
	}{
		"OKOwner":           {token("acc_1", everywhere), "org_1", accessv1.Role_ROLE_OWNER, codes.OK, ""},
		"OKOperator":        {token("acc_1", everywhere), "org_2", accessv1.Role_ROLE_OPERATOR, codes.OK, ""},
		"OKProgram":         {token("apk_1", auth.Roles{"org_1": auth.Operator}), "org_1", accessv1.Role_ROLE_OPERATOR, codes.OK, ""},
		"ErrViewer":         {token("acc_1", everywhere), "org_3", 0, codes.PermissionDenied, "ROLE_NOT_ALLOWED"},
		"ErrStranger":       {token("acc_1", everywhere), "org_4", 0, codes.PermissionDenied, "NOT_A_MEMBER"},
		"ErrNoRoles":        {token("acc_1", nil), "org_1", 0, codes.PermissionDenied, "NOT_A_MEMBER"},
		"ErrRolesChanged":   {token("acc_changed", everywhere), "org_1", 0, codes.Unauthenticated, "ROLES_CHANGED"},
		"ErrNoOrganisation": {token("acc_1", everywhere), "", 0, codes.InvalidArgument, "VALIDATION_FAILED"},
		"ErrNoToken":        {"", "org_1", 0, codes.Unauthenticated, "TOKEN_MISSING"},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := client.Visit(with(test.token), &echov1.VisitRequest{OrganisationId: test.organisation})
			require.Equal(t, test.code, status.Code(err), "%v", err)
			if err != nil {
				require.Equal(t, test.reason, grpcfault.FromStatus(status.Convert(err)).Reason)
				return
			}
			require.Equal(t, test.role, answer.GetRole())
			require.NotEmpty(t, answer.GetCallerId())
		})
	}
	t.Run("ErrAccountNeeded", func(t *testing.T) {
		_, err := client.Whoami(with(token("apk_1", auth.Roles{"org_1": auth.Operator})), &echov1.WhoamiRequest{})
		require.Equal(t, "ACCOUNT_NEEDED", grpcfault.FromStatus(status.Convert(err)).Reason)
		_, err = client.Whoami(with(token("acc_changed", nil)), &echov1.WhoamiRequest{})
		require.NoError(t, err, "what needs no role is not touched by a change of roles")
	})
	t.Run("EachMessageOfAStream", func(t *testing.T) {
		stream, err := client.Tour(with(token("acc_1", everywhere)))
		require.NoError(t, err)
		to := func(organisation string) error {
			if err := stream.Send(&echov1.TourRequest{Place: &echov1.TourRequest_Place{OrganisationId: organisation}}); err != nil {
				return err
			}
			_, err := stream.Recv()
			return err
		}
		require.NoError(t, to("org_1"))
		require.NoError(t, to("org_2"))
		require.Equal(t, "ROLE_NOT_ALLOWED", grpcfault.FromStatus(status.Convert(to("org_3"))).Reason)

		stream, err = client.Tour(with(token("acc_1", everywhere)))
		require.NoError(t, err)
		require.NoError(t, stream.Send(&echov1.TourRequest{}))
		_, err = stream.Recv()
		require.Equal(t, "VALIDATION_FAILED", grpcfault.FromStatus(status.Convert(err)).Reason)
	})
}

// TestClientAddress believes one address, and nothing else.
func TestClientAddress(t *testing.T) {
	client := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{
		echo: func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			return &echov1.EchoResponse{Text: service.ClientAddress(ctx)}, nil
		},
	})).client()
	for name, test := range map[string]struct {
		said []string
		want string
	}{
		"OK":           {[]string{"192.0.2.1"}, "192.0.2.1"},
		"OKSix":        {[]string{"2001:DB8::1%eth0"}, "2001:db8::1"},
		"OKMapped":     {[]string{"::ffff:192.0.2.1"}, "192.0.2.1"},
		"None":         {nil, ""},
		"Two":          {[]string{"192.0.2.1", "192.0.2.2"}, ""},
		"List":         {[]string{"192.0.2.1, 192.0.2.2"}, ""},
		"NoAddress":    {[]string{"localhost"}, ""},
		"WithPort":     {[]string{"192.0.2.1:80"}, ""},
		"SQL":          {[]string{"'; DROP TABLE accounts; --"}, ""},
		"EmptyAddress": {[]string{""}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := callCtx(t)
			for _, value := range test.said {
				ctx = metadata.AppendToOutgoingContext(ctx, "x-forwarded-for", value)
			}
			answer, err := client.Echo(ctx, &echov1.EchoRequest{})
			require.NoError(t, err)
			require.Equal(t, test.want, answer.GetText())
		})
	}
}

func TestAccess(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	token := func(session, audience string) string {
		token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.MapClaims{
			"iss": auth.Issuer, "aud": audience, "sub": "acc_1", "sid": session,
			"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
		})
		token.Header["kid"] = "k"
		signed, err := token.SignedString(private)
		require.NoError(t, err)
		return signed
	}
	s := &stub{
		echo: func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			_, known := auth.CallerFromContext(ctx)
			return &echov1.EchoResponse{Text: fmt.Sprint(known)}, nil
		},
		whoami: func(ctx context.Context, _ *echov1.WhoamiRequest) (*echov1.WhoamiResponse, error) {
			caller, _ := auth.CallerFromContext(ctx)
			return &echov1.WhoamiResponse{AccountId: caller.AccountID}, nil
		},
	}
	cfg := plaintext()
	cfg.LogLevel = "debug"
	r := start(t, cfg, service.GRPCOptions{Keys: keys{public}}, echo(s))
	client := r.client()
	for _, test := range []struct {
		name, header, reason string
	}{
		{name: "OK", header: "Bearer " + token("s", "test")},
		{name: "SchemeInLowerCase", header: "bearer " + token("s", "test")},
		{name: "Missing", reason: "TOKEN_MISSING"},
		{name: "OtherScheme", header: "Basic dTpw", reason: "TOKEN_MISSING"},
		{name: "Garbage", header: "Bearer garbage", reason: "TOKEN_INVALID"},
		{name: "OtherEnvironment", header: "Bearer " + token("s", "production"), reason: "TOKEN_INVALID"},
		{name: "SessionEnded", header: "Bearer " + token("ended", "test"), reason: "SESSION_ENDED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := callCtx(t)
			if test.header != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", test.header)
			}
			got, err := client.Whoami(ctx, &echov1.WhoamiRequest{})
			if test.reason == "" {
				require.NoError(t, err)
				require.Equal(t, "acc_1", got.GetAccountId())
				require.NotEmpty(t, r.logs.lines(t, "call:", "Whoami", "account=acc_1", "code=OK"))
				return
			}
			require.Equal(t, codes.Unauthenticated, status.Code(err))
			require.Equal(t, test.reason, grpcfault.FromStatus(status.Convert(err)).Reason)
		})
	}
	t.Run("AnyoneIgnoresTokens", func(t *testing.T) {
		for _, header := range []string{"Bearer garbage", "Bearer " + token("s", "test")} {
			got, err := client.Echo(metadata.AppendToOutgoingContext(callCtx(t), "authorization", header), &echov1.EchoRequest{})
			require.NoError(t, err)
			require.Equal(t, "false", got.GetText())
		}
	})
	t.Run("ServiceIsNobodyWithoutAMesh", func(t *testing.T) {
		_, err := client.Internal(callCtx(t), &echov1.InternalRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		require.Equal(t, "SERVICE_NOT_ALLOWED", grpcfault.FromStatus(status.Convert(err)).Reason)
	})
	t.Run("ReflectionIsExempt", func(t *testing.T) {
		stream, err := reflectionpb.NewServerReflectionClient(r.conn()).ServerReflectionInfo(callCtx(t))
		require.NoError(t, err)
		require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{
			MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
		}))
		got, err := stream.Recv()
		require.NoError(t, err)
		require.Contains(t, got.String(), "marquee.echo.v1.EchoService")
	})
	require.NotContains(t, r.logs.text(t), token("s", "test")[:40], "tokens are not logged")
}

func TestLogAccess(t *testing.T) {
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{}))
	client := r.client()
	_, err := client.Echo(callCtx(t), &echov1.EchoRequest{})
	require.NoError(t, err)
	_, err = client.Echo(callCtx(t), &echov1.EchoRequest{DelayMs: -1})
	require.Error(t, err)
	require.Empty(t, r.logs.lines(t, "call:", "code=OK"), "success is logged at debug only")
	require.Len(t, r.logs.lines(t, "call:", "code=INVALID_ARGUMENT", "[INFO]"), 1)
}

// Metrics are what a dashboard is made of: their labels are bounded.
func TestMetrics(t *testing.T) {
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{}))
	conn := r.conn()
	for i := range 20 {
		_ = conn.Invoke(callCtx(t), fmt.Sprintf("/made.up/Method%d", i), &echov1.EchoRequest{}, &echov1.EchoResponse{})
	}
	for range 3 {
		_, err := echov1.NewEchoServiceClient(conn).Echo(callCtx(t), &echov1.EchoRequest{})
		require.NoError(t, err)
	}
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, `grpc_server_call_seconds_count{code="OK",method="/marquee.echo.v1.EchoService/Echo"} 3`)
	require.NotContains(t, metrics, "made.up")
}

func TestNewRequestID(t *testing.T) {
	seen := map[string]bool{}
	for range 10000 {
		id := service.NewRequestID()
		require.True(t, service.ValidRequestID(id))
		require.Len(t, id, 26)
		require.False(t, seen[id])
		seen[id] = true
	}
}
