package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/stack"
)

type invokeCmd struct {
	Method  string        `arg:"" help:"SERVICE/METHOD, for example marquee.account.v1.AccountService/GetAccount."`
	Request string        `arg:"" optional:"" help:"The request as JSON; several one after the other for a stream; - reads standard input. Default: an empty request."`
	Token   string        `help:"Access token to call with."`
	As      string        `help:"Log in first, as an account of the demo, which owns displays or advertises: ${accounts}." enum:",${accounts}" default:""`
	Timeout time.Duration `default:"30s" help:"Deadline of the call; 0s for none."`
}

// Validate refuses two callers at once.
func (c *invokeCmd) Validate() error {
	if c.Token != "" && c.As != "" {
		return errors.New("--token and --as both say who calls: leave one out")
	}
	return nil
}

// Run calls one method and prints each answer as JSON.
func (c *invokeCmd) Run(e *env) error {
	return e.withAPI(func(s *stack.Stack, d *door, a *api) error {
		method, err := a.method(c.Method)
		if err != nil {
			return err
		}
		ctx := e.ctx
		if c.Timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.Timeout)
			defer cancel()
		}
		token := c.Token
		if c.As != "" {
			if token, err = demoToken(ctx, s, c.As, a, d); err != nil {
				return errors.New(explainStatus(err, a.resolver()))
			}
		}
		requests := io.Reader(strings.NewReader(c.Request))
		if c.Request == "-" {
			requests = e.input()
		}
		err = a.call(bearer(ctx, token), d, method, requests, func(json []byte) error {
			_, err := fmt.Fprintf(e.stdout, "%s\n", json)
			return err
		})
		if status.Code(err) == codes.Unauthenticated && token == "" {
			return errors.New(explainStatus(err, a.resolver()) + "\n  --as demo calls as the demo account, --token TOKEN as who owns that")
		}
		if err != nil {
			return errors.New(explainStatus(err, a.resolver()))
		}
		return nil
	})
}

// call sends the JSON messages of requests to a method and gives each answer as
// JSON to each. A method that takes a stream gets all of them, others want
// exactly one, and nothing at all is one empty message.
func (a *api) call(ctx context.Context, conn grpc.ClientConnInterface, method protoreflect.MethodDescriptor,
	requests io.Reader, each func(json []byte) error,
) error {
	messages, err := a.decode(method, requests)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{
		ClientStreams: method.IsStreamingClient(), ServerStreams: method.IsStreamingServer(),
	}, methodPath(method))
	if err != nil {
		return err
	}
	for _, message := range messages {
		// The reason for a stream that ended early is with the answers.
		if err := stream.SendMsg(message); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	format := protojson.MarshalOptions{Multiline: true, EmitDefaultValues: true, Resolver: a.resolver()}
	for {
		answer := dynamicpb.NewMessage(method.Output())
		if err := stream.RecvMsg(answer); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		text, err := format.Marshal(answer)
		if err != nil {
			return fmt.Errorf("writing the answer as JSON: %w", err)
		}
		if err := each(text); err != nil {
			return err
		}
		if !method.IsStreamingServer() {
			return nil
		}
	}
}

// decode reads JSON messages, one after the other, as the method's input.
func (a *api) decode(method protoreflect.MethodDescriptor, requests io.Reader) ([]proto.Message, error) {
	var messages []proto.Message
	decoder := json.NewDecoder(requests)
	for {
		var raw json.RawMessage
		var syntax *json.SyntaxError
		switch err := decoder.Decode(&raw); {
		case errors.Is(err, io.EOF):
			return wanted(method, messages)
		case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("the request is not JSON: %w", err)
		case err != nil:
			return nil, fmt.Errorf("reading the request: %w", err)
		}
		message := dynamicpb.NewMessage(method.Input())
		if err := (protojson.UnmarshalOptions{Resolver: a.resolver()}).Unmarshal(raw, message); err != nil {
			return nil, fmt.Errorf("the request is not a %s: %w", method.Input().FullName(), err)
		}
		messages = append(messages, message)
	}
}

// wanted are the messages, when they are as many as a method takes.
func wanted(method protoreflect.MethodDescriptor, messages []proto.Message) ([]proto.Message, error) {
	if method.IsStreamingClient() {
		return messages, nil
	}
	if len(messages) == 0 {
		messages = append(messages, dynamicpb.NewMessage(method.Input()))
	}
	if len(messages) > 1 {
		return nil, fmt.Errorf("%s takes one request, not %d", method.FullName(), len(messages))
	}
	return messages, nil
}

func methodPath(method protoreflect.MethodDescriptor) string {
	return "/" + string(method.Parent().FullName()) + "/" + string(method.Name())
}

// bearer returns a context whose calls carry an access token.
func bearer(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// explainStatus writes a gRPC error for people: its code and message, the
// fields that are wrong, when to try again, and any other details as JSON.
func explainStatus(err error, resolver *typeResolver) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", fault.Code(s.Code()), s.Message())
	for _, detail := range s.Proto().GetDetails() {
		message, err := detail.UnmarshalNew()
		if err != nil {
			message = detail
		}
		switch d := message.(type) {
		case *errdetails.ErrorInfo:
			fmt.Fprintf(&text, "\n  reason: %s (%s)", d.GetReason(), d.GetDomain())
			for name, value := range d.GetMetadata() {
				fmt.Fprintf(&text, "\n  %s: %s", name, value)
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				fmt.Fprintf(&text, "\n  field %s: %s", v.GetField(), v.GetDescription())
				if v.GetReason() != "" {
					fmt.Fprintf(&text, " (%s)", v.GetReason())
				}
			}
		case *errdetails.RetryInfo:
			fmt.Fprintf(&text, "\n  try again after: %s", d.GetRetryDelay().AsDuration())
		case *errdetails.RequestInfo:
			fmt.Fprintf(&text, "\n  request id: %s", d.GetRequestId())
		default:
			raw, err := protojson.MarshalOptions{Resolver: resolver}.Marshal(detail)
			if err != nil {
				raw = []byte(detail.GetTypeUrl())
			}
			fmt.Fprintf(&text, "\n  detail: %s", raw)
		}
	}
	return text.String()
}
