package main

import (
	"testing"

	"google.golang.org/grpc/codes"

	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

// What is for another service is refused to accounts, whatever they may otherwise.
func TestSearchIsForServices(t *testing.T) {
	i := newWorld(t).start(t)
	_, err := i.SearchDevices(i.owner(t), &devicev1.SearchDevicesRequest{OrganisationId: organisation})
	refused(t, err, codes.PermissionDenied, "SERVICE_NOT_ALLOWED")
}
