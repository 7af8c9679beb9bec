// Package imaging draws backgrounds from descriptions and pastes products onto them.
//
// It is a scene renderer, not a diffusion model, and is never presented as one. The words are in package
// grammar; every scene is a short program over an anti-aliased canvas in normalised coordinates (0..1 in
// both directions), so that the same description and seed give the same picture at every size and the
// 64 px view of a 256 px picture looks like that of a 128 px one.
//
//   - scene_*.go: the eighteen scenes; props.go: what lies around; light.go: the light.
//   - canvas.go, noise.go: shapes by signed distance, perspective floors, band-limited noise.
//   - compose.go: the product's contact shadow and its exact paste-back.
//   - pipe.go: the server behind `ctrloop render pipe`.
package imaging
