package devices

import (
	"context"

	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/server"
)

// displaysPage is how many displays are read at once.
const displaysPage = 1000

// ListDisplays implements order.Devices.
func (c *Client) ListDisplays(ctx context.Context, token string) ([]order.Display, string, error) {
	answer, err := call(ctx, order.ErrDevicesUnavailable, c.device.SearchDevices, &devicev1.SearchDevicesRequest{PageSize: displaysPage, PageToken: token})
	if err != nil {
		return nil, "", err
	}
	displays := make([]order.Display, 0, len(answer.GetDevices()))
	for _, message := range answer.GetDevices() {
		// One that cannot be sold is not listed, and holds the others up no longer.
		if d, err := server.DisplayOf(message); err == nil {
			displays = append(displays, d)
		}
	}
	return displays, answer.GetNextPageToken(), nil
}
