package service_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	accessv1 "github.com/marquee-ads/marquee/proto/gen/marquee/access/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// A failing requirement takes the instance out of everything that says whether
// to call it.
func TestReadiness(t *testing.T) {
	var broken atomic.Bool
	r := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, func(svc *service.Service, server *grpc.Server) {
		echov1.RegisterEchoServiceServer(server, &stub{})
		svc.Require("database", func(ctx context.Context) error {
			_, bounded := ctx.Deadline()
			if broken.Load() || !bounded {
				return errors.New("no connection")
			}
			return nil
		})
	})
	admin, err := grpc.NewClient(r.addresses.Admin, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer admin.Close()
	health := func(conn grpc.ClientConnInterface, name string) healthpb.HealthCheckResponse_ServingStatus {
		got, err := healthpb.NewHealthClient(conn).Check(callCtx(t), &healthpb.HealthCheckRequest{Service: name})
		require.NoError(t, err)
		return got.GetStatus()
	}
	mesh := r.conn()
	all := func(want healthpb.HealthCheckResponse_ServingStatus) {
		for _, conn := range []grpc.ClientConnInterface{admin, mesh} {
			require.Equal(t, want, health(conn, ""))
			require.Equal(t, want, health(conn, "marquee.echo.v1.EchoService"))
		}
	}
	r.ready(200)
	all(healthpb.HealthCheckResponse_SERVING)

	// A watch over h2c hears of each change.
	watch, err := healthpb.NewHealthClient(admin).Watch(callCtx(t), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	got, err := watch.Recv()
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, got.GetStatus())

	broken.Store(true)
	r.ready(503)
	all(healthpb.HealthCheckResponse_NOT_SERVING)
	got, err = watch.Recv()
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, got.GetStatus())
	_, body := r.get("/readyz")
	require.JSONEq(t, `{"ready": false, "reason": "database does not hold", "requirements": [
		{"name": "mesh", "ok": true}, {"name": "database", "ok": false, "error": "no connection"}]}`, body)
	code, _ := r.get("/healthz")
	require.Equal(t, 200, code, "the process is alive all the same")

	broken.Store(false)
	r.ready(200)
	all(healthpb.HealthCheckResponse_SERVING)
	require.Len(t, r.logs.lines(t, "a requirement fails", "database", "no connection"), 1)
	require.Len(t, r.logs.lines(t, "a requirement holds again"), 1)
}

// A call in flight finishes, calls during the drain delay are answered, and
// calls on the connection that exists do not fail at any time.
func TestShutdownLosesNoCall(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := &stub{echo: func(_ context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
		if r.GetText() == "slow" {
			close(entered)
			<-release
		}
		return &echov1.EchoResponse{Text: r.GetText()}, nil
	}}
	cfg := plaintext()
	cfg.DrainDelay = 300 * time.Millisecond
	r := start(t, cfg, service.GRPCOptions{Keys: auth.NoKeys{}}, echo(s))
	r.ready(200)
	client := r.client()

	slow := make(chan error, 1)
	go func() {
		_, err := client.Echo(callCtx(t), &echov1.EchoRequest{Text: "slow"})
		slow <- err
	}()
	<-entered
	stopped := make(chan error, 1)
	began := time.Now()
	go func() { stopped <- r.stop() }()
	r.ready(503)
	for time.Since(began) < cfg.DrainDelay/2 {
		_, err := client.Echo(callCtx(t), &echov1.EchoRequest{Text: "quick"})
		require.NoError(t, err, "callers that have not noticed yet are served")
	}
	// After the delay the port is closed, while the slow call is still there.
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", r.addresses.Mesh)
		if err == nil {
			conn.Close()
		}
		return err != nil
	}, 5*time.Second, 5*time.Millisecond)
	require.GreaterOrEqual(t, time.Since(began), cfg.DrainDelay)
	select {
	case err := <-slow:
		t.Fatalf("the call in flight ended early: %v", err)
	default:
	}
	close(release)
	require.NoError(t, <-slow)
	require.NoError(t, <-stopped)
}

// Streams of health and reflection that clients keep open do not hold it up.
func TestShutdownEndsHealthAndReflection(t *testing.T) {
	cfg := plaintext()
	cfg.DrainTimeout = time.Minute
	r := start(t, cfg, service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{}))
	watch, err := healthpb.NewHealthClient(r.conn()).Watch(callCtx(t), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = watch.Recv()
	require.NoError(t, err)
	reflection, err := reflectionpb.NewServerReflectionClient(r.conn()).ServerReflectionInfo(callCtx(t))
	require.NoError(t, err)
	require.NoError(t, reflection.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	}))
	_, err = reflection.Recv()
	require.NoError(t, err)

	began := time.Now()
	require.NoError(t, r.stop())
	require.Less(t, time.Since(began), 10*time.Second)
	_, err = reflection.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	for err = nil; err == nil; {
		_, err = watch.Recv()
	}
	require.Equal(t, codes.Unavailable, status.Code(err))
}

func TestShutdownCutsCallsAfterDrainTimeout(t *testing.T) {
	entered := make(chan struct{})
	s := &stub{echo: func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	cfg := plaintext()
	cfg.DrainTimeout = 50 * time.Millisecond
	r := start(t, cfg, service.GRPCOptions{Keys: auth.NoKeys{}}, echo(s))
	cut := make(chan error, 1)
	go func() {
		_, err := r.client().Echo(callCtx(t), &echov1.EchoRequest{})
		cut <- err
	}()
	<-entered
	require.NoError(t, r.stop())
	require.Equal(t, codes.Unavailable, status.Code(<-cut))
	require.NotEmpty(t, r.logs.lines(t, "still in flight"))
}

// Components share the time there is: no number of them holds a stop up.
func TestShutdownHasOneDeadline(t *testing.T) {
	const components = 5
	cfg := plaintext()
	cfg.DrainTimeout = time.Second
	var deadlines []time.Time
	r := start(t, cfg, service.GRPCOptions{}, func(svc *service.Service, _ *grpc.Server) {
		for i := range components {
			svc.Add(service.Component{Name: "slow", Stop: func(ctx context.Context) error {
				deadline, _ := ctx.Deadline()
				deadlines = append(deadlines, deadline)
				if i == components-1 { // the first to stop takes all of its time
					<-ctx.Done()
					return nil
				}
				return ctx.Err() // there is time left for the rest
			}})
		}
	})
	began := time.Now()
	require.NoError(t, r.stop())
	require.Less(t, time.Since(began), cfg.DrainTimeout+3*time.Second)
	require.Len(t, deadlines, components, "each is stopped")
	require.WithinDuration(t, began.Add(cfg.DrainTimeout), deadlines[0], time.Second/2)
	for _, deadline := range deadlines[1:] {
		require.Equal(t, deadlines[0].Add(2*time.Second), deadline, "the rest share")
	}
}

// When every component takes what it gets, the whole still ends in time.
func TestShutdownOfManySlowComponents(t *testing.T) {
	cfg := plaintext()
	cfg.DrainTimeout = time.Second
	var stopped atomic.Int32
	r := start(t, cfg, service.GRPCOptions{}, func(svc *service.Service, _ *grpc.Server) {
		for range 5 {
			svc.Add(service.Component{Name: "slow", Stop: func(ctx context.Context) error {
				<-ctx.Done()
				stopped.Add(1)
				return nil
			}})
		}
	})
	began := time.Now()
	require.NoError(t, r.stop())
	require.Less(t, time.Since(began), cfg.DrainTimeout+3*time.Second, "each took a time of its own")
	require.EqualValues(t, 5, stopped.Load())
}

func TestComponents(t *testing.T) {
	var (
		mu     sync.Mutex
		events []string
	)
	note := func(event string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, event)
	}
	component := func(name string, err error) service.Component {
		return service.Component{
			Name:  name,
			Start: func(context.Context) error { note("start " + name); return err },
			Stop:  func(context.Context) error { note("stop " + name); return nil },
		}
	}
	t.Run("StartInOrderAndStopInReverse", func(t *testing.T) {
		events = nil
		r := start(t, plaintext(), service.GRPCOptions{}, func(svc *service.Service, _ *grpc.Server) {
			svc.Add(component("a", nil))
			svc.AddBackground("work", func(ctx context.Context) error {
				<-ctx.Done()
				note("work ended")
				return ctx.Err()
			})
			svc.Add(component("b", nil))
		})
		require.NoError(t, r.stop())
		require.Equal(t, []string{"start a", "start b", "stop b", "work ended", "stop a"}, events)
	})
	t.Run("AFailureStopsWhatWasStarted", func(t *testing.T) {
		events = nil
		err := serve(t, func(svc *service.Service) {
			svc.Add(component("a", nil))
			svc.Add(component("b", errors.New("no disk")))
			svc.Add(component("c", nil))
		})
		require.EqualError(t, err, "starting b: no disk")
		require.Equal(t, []string{"start a", "start b", "stop a"}, events)
	})
	t.Run("BackgroundWorkThatEndsStopsTheService", func(t *testing.T) {
		events = nil
		err := serve(t, func(svc *service.Service) {
			svc.Add(component("a", nil))
			svc.AddBackground("work", func(context.Context) error { return errors.New("lost") })
		})
		require.ErrorContains(t, err, "work ended: lost")
		require.Equal(t, []string{"start a", "stop a"}, events)
	})
	t.Run("ToldToStopWhileStarting", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		svc, err := service.New(ctx, quiet(t))
		require.NoError(t, err)
		defer svc.Close()
		svc.Add(service.Component{Name: "slow", Start: func(ctx context.Context) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}})
		require.NoError(t, svc.Serve(ctx), "an ordered stop")
	})
	t.Run("PortInUse", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer taken.Close()
		cfg := quiet(t)
		cfg.Listen = taken.Addr().String()
		svc, err := service.New(context.Background(), cfg)
		require.NoError(t, err)
		svc.NewGRPCServer(service.GRPCOptions{})
		require.ErrorContains(t, svc.Serve(context.Background()), "starting the gRPC server: --listen: listen tcp "+cfg.Listen)
		cfg = quiet(t)
		cfg.AdminListen = taken.Addr().String()
		_, err = service.New(context.Background(), cfg)
		require.ErrorContains(t, err, "--admin-listen: listen tcp")
	})
}

func quiet(t *testing.T) service.Config {
	cfg := plaintext()
	cfg.LogOutput = newLogFile(t).File
	return cfg
}

// serve runs a service that ends by itself.
func serve(t *testing.T, prepare func(*service.Service)) error {
	t.Helper()
	svc, err := service.New(context.Background(), quiet(t))
	require.NoError(t, err)
	defer svc.Close()
	prepare(svc)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = svc.Serve(ctx)
	require.NoError(t, ctx.Err(), "the service did not end by itself")
	return err
}

// A method that says not who may call it must not be served.
func TestMethodsMustSayWhoMayCall(t *testing.T) {
	for _, test := range []struct {
		name   string
		access *accessv1.Access
		want   string
	}{
		{name: "Lacking", want: "/test.Lacking/Do does not say who may call it; add option (marquee.access.v1.access)"},
		{name: "Unspecified", access: &accessv1.Access{}, want: "/test.Unspecified/Do does not say who may call it"},
		{name: "ServicesOfAnyone", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ANYONE, Services: []string{"order"}}, want: "/test.ServicesOfAnyone/Do names services and is for CALLER_ANYONE"},
		{name: "NoServices", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_SERVICE}, want: "/test.NoServices/Do is for services and names none"},
		{name: "NoKeys", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ACCOUNT}, want: "/test.NoKeys/Do is for accounts, and GRPCOptions.Keys is nil"},
		{name: "RolesOfAnyone", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ANYONE, Roles: []accessv1.Role{accessv1.Role_ROLE_OWNER}, OrganisationField: "x"}, want: "/test.RolesOfAnyone/Do names roles and is for CALLER_ANYONE; use CALLER_ACCOUNT"},
		{name: "FieldWithoutRoles", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ACCOUNT, OrganisationField: "text"}, want: `/test.FieldWithoutRoles/Do names organisation_field "text" and no roles`},
		{name: "RolesWithoutField", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ACCOUNT, Roles: []accessv1.Role{accessv1.Role_ROLE_OWNER}}, want: "/test.RolesWithoutField/Do names roles and not the field of the organisation they are in; add organisation_field"},
		{name: "NoRole", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ACCOUNT, Roles: []accessv1.Role{accessv1.Role_ROLE_UNSPECIFIED}, OrganisationField: "text"}, want: "/test.NoRole/Do names the role ROLE_UNSPECIFIED, which is none, or twice"},
		{name: "RoleTwice", access: &accessv1.Access{Caller: accessv1.Caller_CALLER_ACCOUNT, Roles: []accessv1.Role{accessv1.Role_ROLE_OWNER, accessv1.Role_ROLE_OWNER}, OrganisationField: "text"}, want: "/test.RoleTwice/Do names the role ROLE_OWNER, which is none, or twice"},
		{name: "NoSuchField", access: rolesIn("organisation_id"), want: `/test.NoSuchField/Do names organisation_field "organisation_id", and test.NoSuchFieldRequest has no such string field`},
		{name: "FieldIsANumber", access: rolesIn("number"), want: `organisation_field "number", and test.FieldIsANumberRequest has no such string field`},
		{name: "FieldIsAList", access: rolesIn("texts"), want: `organisation_field "texts", and test.FieldIsAListRequest has no such string field`},
		{name: "FieldBehindAString", access: rolesIn("text.text"), want: `organisation_field "text.text", and test.FieldBehindAStringRequest has no such string field`},
		{name: "NoDescriptor", want: "service test.Unlinked is registered and its descriptor is not linked in"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := "test." + test.name
			if test.name == "NoDescriptor" {
				name = "test.Unlinked"
			} else {
				describe(t, test.name, test.access)
			}
			err := serve(t, func(svc *service.Service) {
				svc.NewGRPCServer(service.GRPCOptions{}).RegisterService(&grpc.ServiceDesc{
					ServiceName: name, Methods: []grpc.MethodDesc{{MethodName: "Do"}},
				}, nil)
			})
			require.ErrorContains(t, err, test.want)
		})
	}
}

func rolesIn(field string) *accessv1.Access {
	return &accessv1.Access{Caller: accessv1.Caller_CALLER_ACCOUNT, Roles: []accessv1.Role{accessv1.Role_ROLE_OWNER}, OrganisationField: field}
}

// describe links in the descriptor of a service "test.<name>" with a method Do.
func describe(t *testing.T, name string, access *accessv1.Access) {
	if _, err := protoregistry.GlobalFiles.FindFileByPath(name + ".proto"); err == nil {
		return // by an earlier run of the test
	}
	options := &descriptorpb.MethodOptions{}
	if access != nil {
		proto.SetExtension(options, accessv1.E_Access, access)
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String(name + ".proto"), Package: proto.String("test"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{
			Name: proto.String(name + "Request"),
			Field: []*descriptorpb.FieldDescriptorProto{
				{Name: proto.String("text"), Number: proto.Int32(1), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()},
				{Name: proto.String("number"), Number: proto.Int32(2), Type: descriptorpb.FieldDescriptorProto_TYPE_INT32.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()},
				{Name: proto.String("texts"), Number: proto.Int32(3), Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()},
			},
		}},
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: proto.String(name),
			Method: []*descriptorpb.MethodDescriptorProto{{
				Name: proto.String("Do"), Options: options,
				InputType: proto.String(".test." + name + "Request"), OutputType: proto.String(".test." + name + "Request"),
			}},
		}},
	}, protoregistry.GlobalFiles)
	require.NoError(t, err)
	require.NoError(t, protoregistry.GlobalFiles.RegisterFile(file))
}

func TestNewClient(t *testing.T) {
	var got string
	behind := start(t, plaintext(), service.GRPCOptions{Keys: auth.NoKeys{}}, echo(&stub{
		echo: func(ctx context.Context, _ *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			got = service.RequestID(ctx)
			return &echov1.EchoResponse{}, nil
		},
	}))
	cfg := plaintext()
	cfg.Upstreams = map[string][]string{"other": {behind.addresses.Mesh}}
	var sent string
	s := &stub{}
	front := start(t, cfg, service.GRPCOptions{Keys: auth.NoKeys{}}, func(svc *service.Service, server *grpc.Server) {
		conn, err := svc.NewClient("other")
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		s.echo = func(ctx context.Context, r *echov1.EchoRequest) (*echov1.EchoResponse, error) {
			sent = service.RequestID(ctx)
			return echov1.NewEchoServiceClient(conn).Echo(ctx, r)
		}
		echov1.RegisterEchoServiceServer(server, s)
	})
	_, err := front.client().Echo(callCtx(t), &echov1.EchoRequest{})
	require.NoError(t, err)
	require.NotEmpty(t, sent)
	require.Equal(t, sent, got, "the request id goes along")
}
