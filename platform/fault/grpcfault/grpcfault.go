// Package grpcfault carries a fault.Error over gRPC: as a status whose details
// are the standard ones (google.rpc.ErrorInfo, BadRequest, RetryInfo and
// RequestInfo), so that callers in any language can read them.
package grpcfault

import (
	"maps"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Domain is the domain of every ErrorInfo: reasons are Marquee's own.
const Domain = "marquee"

// ToStatus turns err into the status that its caller sees. A *fault.Error in
// the chain keeps its code, reason, message, fields, delay and metadata; its
// cause stays inside. Any other error becomes INTERNAL (reason INTERNAL,
// message "internal error"): nothing of its text leaves. The request id, when
// not empty, goes along as RequestInfo. A nil err is OK.
func ToStatus(err error, requestID string) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	f, ok := fault.From(err)
	if !ok || f == nil {
		f = &fault.Error{Code: fault.Internal, Reason: "INTERNAL", Message: "internal error"}
	}
	code := codes.Code(f.Code)
	if f.Code == fault.OK || code > codes.Unauthenticated {
		code = codes.Unknown // an error must not look like a success
	}
	details := make([]protoadapt.MessageV1, 0, 4)
	details = append(details, &errdetails.ErrorInfo{Reason: f.Reason, Domain: Domain, Metadata: f.Meta})
	if len(f.Fields) > 0 {
		bad := &errdetails.BadRequest{FieldViolations: make([]*errdetails.BadRequest_FieldViolation, len(f.Fields))}
		for i, v := range f.Fields {
			bad.FieldViolations[i] = &errdetails.BadRequest_FieldViolation{
				Field: v.Path, Description: v.Description, Reason: v.Rule,
			}
		}
		details = append(details, bad)
	}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	if requestID != "" {
		details = append(details, &errdetails.RequestInfo{RequestId: requestID})
	}
	plain := status.New(code, f.Message)
	detailed, err := plain.WithDetails(details...)
	if err != nil {
		// A detail that cannot be marshalled (a string that is not UTF-8) must
		// not hide the failure itself.
		return plain
	}
	return detailed
}

// FromStatus turns a status that another service answered into the fault it
// was made from, so that a service can decide on its reason. A status without
// Marquee's ErrorInfo (from a proxy, or the transport) gets its code's name as
// the reason. OK is nil.
func FromStatus(st *status.Status) *fault.Error {
	if st.Code() == codes.OK {
		return nil
	}
	f := &fault.Error{Code: fault.Code(st.Code()), Message: st.Message()}
	if st.Code() > codes.Unauthenticated {
		f.Code = fault.Unknown
	}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == Domain {
				f.Reason, f.Meta = d.GetReason(), maps.Clone(d.GetMetadata())
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				f.Fields = append(f.Fields, fault.Field{Path: v.GetField(), Description: v.GetDescription(), Rule: v.GetReason()})
			}
		case *errdetails.RetryInfo:
			f.RetryAfter = max(0, d.GetRetryDelay().AsDuration())
		}
	}
	if f.Reason == "" {
		f.Reason = f.Code.String()
	}
	return f
}

// RequestID is the id that the answering service knows the request by; empty
// when the status carries none.
func RequestID(st *status.Status) string {
	for _, detail := range st.Details() {
		if d, ok := detail.(*errdetails.RequestInfo); ok {
			return d.GetRequestId()
		}
	}
	return ""
}

// RetryAfter is how long the answering service asks its caller to wait; zero
// when it does not say.
func RetryAfter(st *status.Status) time.Duration {
	for _, detail := range st.Details() {
		if d, ok := detail.(*errdetails.RetryInfo); ok {
			return max(0, d.GetRetryDelay().AsDuration())
		}
	}
	return 0
}
