// SPDX-License-Identifier: MPL-2.0

//go:build !race

package dingtalk

// simulationDays is how long the simulation runs.
const simulationDays = 30
