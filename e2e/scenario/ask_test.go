package scenario

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/e2e/load"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

func TestRESTRequest(t *testing.T) {
	for name, c := range map[string]struct {
		in           proto.Message
		method, path string
		body         any
	}{
		"Post": {
			&orderv1.BookOrderRequest{OrganisationId: "org_1", OrderId: "ord_1", RequestId: "request-1"},
			http.MethodPost, "/v1/organisations/org_1/orders/ord_1:book", map[string]any{"request_id": "request-1"},
		},
		"Put": {
			&orderv1.SetLineCreativeRequest{OrganisationId: "org_1", OrderId: "ord_1", CreativeId: "crv_1"},
			http.MethodPut, "/v1/organisations/org_1/orders/ord_1/creative", map[string]any{"creative_id": "crv_1"},
		},
		"Number": {
			&orderv1.DecideApprovalRequest{OrganisationId: "org_1", CreativeId: "crv_1", Version: 2, Approve: true},
			http.MethodPost, "/v1/organisations/org_1/approvals/crv_1/2:decide", map[string]any{"approve": true},
		},
		"Get": {
			&orderv1.ListOrdersRequest{OrganisationId: "org_1", State: orderv1.OrderState_ORDER_STATE_BOOKED, PageSize: 200, PageToken: "a+b"},
			http.MethodGet, "/v1/organisations/org_1/orders?page_size=200&page_token=a%2Bb&state=ORDER_STATE_BOOKED", nil,
		},
		"Escaped": {&orderv1.GetOrderRequest{OrganisationId: "a/b"}, http.MethodGet, "/v1/organisations/a%2Fb/orders/", nil},
	} {
		t.Run(name, func(t *testing.T) {
			method, err := methodOf(c.in)
			require.NoError(t, err)
			got, err := restRequest(method, c.in)
			require.NoError(t, err)
			require.Equal(t, load.Request{Method: c.method, Path: c.path, Body: c.body, Idempotent: true}, got)
		})
	}
	_, err := methodOf(&orderv1.Order{})
	require.ErrorContains(t, err, "marquee.order.v1.Order is no request")
}

func TestRefused(t *testing.T) {
	problem := func(code int, body string) error {
		return fmt.Errorf("call: %w", &load.ProblemError{HTTPStatus: code, Body: []byte(body)})
	}
	for name, c := range map[string]struct {
		err     error
		reason  string
		refused bool
	}{
		"REST":           {problem(400, `{"reason":"SLOT_TAKEN"}`), "SLOT_TAKEN", true},
		"RESTOverloaded": {problem(429, `{"reason":"OVERLOADED"}`), "OVERLOADED", false},
		"RESTBroken":     {problem(502, "<html>"), "", false},
		"gRPC":           {fmt.Errorf("call: %w", status.Error(codes.FailedPrecondition, "no")), "FAILED_PRECONDITION", true},
		"gRPCAway":       {status.Error(codes.Unavailable, "away"), "UNAVAILABLE", false},
		"NoAnswer":       {errors.New("connection refused"), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.reason, Reason(c.err))
			require.Equal(t, c.refused, Refused(c.err))
		})
	}
}
