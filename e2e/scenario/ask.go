package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
)

// Door is one of the two that every gateway has.
type Door int

// The doors.
const (
	GRPC Door = iota
	REST
)

// String is what the door is called in logs.
func (d Door) String() string { return [...]string{"gRPC", "REST"}[d] }

// Ask calls the method that has this request, through one door. An
// organisation_id that is empty is the organisation's own; out is nil for who does not
// want the answer. What makes something has to carry a request_id: the call may be
// repeated at another gateway.
func (o *Owner) Ask(ctx context.Context, door Door, in, out proto.Message) error {
	method, err := methodOf(in)
	if err != nil {
		return err
	}
	token, err := o.Token(ctx)
	if err != nil {
		return err
	}
	if out == nil {
		out = dynamicpb.NewMessage(method.Output())
	}
	in = proto.Clone(in)
	if field := method.Input().Fields().ByName("organisation_id"); field != nil && !in.ProtoReflect().Has(field) {
		in.ProtoReflect().Set(field, protoreflect.ValueOfString(o.Organisation))
	}
	if door == GRPC {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		err = o.Doors.GRPC.Invoke(ctx, fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name()), in, out)
	} else {
		err = o.askREST(ctx, token, method, in, out)
	}
	if err != nil {
		return fmt.Errorf("%s over %s: %w", method.Name(), door, err)
	}
	return nil
}

func (o *Owner) askREST(ctx context.Context, token string, method protoreflect.MethodDescriptor, in, out proto.Message) error {
	request, err := restRequest(method, in)
	if err != nil {
		return err
	}
	request.Token = token
	var text json.RawMessage
	if _, err := o.Doors.REST.Do(ctx, request, &text); err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, out); err != nil {
		return fmt.Errorf("decode %s: %w", text, err)
	}
	return nil
}

// methodOf is the method that has a request.
func methodOf(in proto.Message) (protoreflect.MethodDescriptor, error) {
	wanted := in.ProtoReflect().Descriptor()
	services := wanted.ParentFile().Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			if methods.Get(j).Input() == wanted {
				return methods.Get(j), nil
			}
		}
	}
	return nil, fmt.Errorf("%s is no request", wanted.FullName())
}

var pathVariable = regexp.MustCompile(`\{([a-z0-9_]+)\}`)

// restRequest is a request by the HTTP rule of its method, whose path names fields:
// what is not in the path is in the body or, of a GET, in the query.
func restRequest(method protoreflect.MethodDescriptor, in proto.Message) (load.Request, error) {
	rule, _ := proto.GetExtension(method.Options(), annotations.E_Http).(*annotations.HttpRule)
	r := load.Request{Idempotent: true}
	switch {
	case rule.GetGet() != "":
		r.Method, r.Path = http.MethodGet, rule.GetGet()
	case rule.GetPost() != "":
		r.Method, r.Path = http.MethodPost, rule.GetPost()
	case rule.GetPut() != "":
		r.Method, r.Path = http.MethodPut, rule.GetPut()
	default:
		return r, fmt.Errorf("%s has no route that is understood", method.FullName())
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(in)
	if err != nil {
		return r, fmt.Errorf("marshal %s: %w", method.Input().Name(), err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return r, fmt.Errorf("read %s: %w", text, err)
	}
	r.Path = pathVariable.ReplaceAllStringFunc(r.Path, func(variable string) string {
		name := strings.Trim(variable, "{}")
		value := fields[name]
		delete(fields, name)
		if value == nil { // as protojson leaves zero values out
			value = ""
		}
		return url.PathEscape(fmt.Sprint(value))
	})
	if r.Method != http.MethodGet {
		r.Body = fields
		return r, nil
	}
	query := url.Values{}
	for name, value := range fields {
		query.Set(name, fmt.Sprint(value))
	}
	if len(query) > 0 {
		r.Path += "?" + query.Encode()
	}
	return r, nil
}

// Reason is why a call was refused, through either door: for example SLOT_TAKEN. It
// is empty when nobody said.
func Reason(err error) string {
	var problem *load.ProblemError
	if errors.As(err, &problem) {
		var said struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal(problem.Body, &said) != nil {
			return ""
		}
		return said.Reason
	}
	if st, ok := status.FromError(err); ok && err != nil {
		return grpcfault.FromStatus(st).Reason
	}
	return ""
}

// Refused says whether a call that failed was refused, so that nothing of it was
// done. Of one that was not, nobody knows.
func Refused(err error) bool {
	var problem *load.ProblemError
	if errors.As(err, &problem) {
		switch problem.HTTPStatus {
		case http.StatusRequestTimeout, http.StatusTooManyRequests:
			return false
		}
		return problem.HTTPStatus/100 == 4
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated, codes.FailedPrecondition, codes.Aborted, codes.OutOfRange:
		return true
	}
	return false
}
