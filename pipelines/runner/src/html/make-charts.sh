#!/usr/bin/env bash
# Makes pipelines/runner/src/html/charts.min.js: what the HTML report uses of Apache ECharts (Apache-2.0), in one
# script. Needs Node.js; run again for a newer version, and look at a report afterwards.
set -euo pipefail
version=6.1.0
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent "echarts@$version" esbuild@0.25
cat >charts.js <<'JS'
import * as echarts from "echarts/core";
import { BarChart, CustomChart, GraphChart, HeatmapChart, LineChart } from "echarts/charts";
import {
  DataZoomComponent, GridComponent, LegendComponent, TooltipComponent, VisualMapComponent,
} from "echarts/components";
import { SVGRenderer } from "echarts/renderers";
echarts.use([
  BarChart, CustomChart, GraphChart, HeatmapChart, LineChart, DataZoomComponent, GridComponent, LegendComponent,
  TooltipComponent, VisualMapComponent, SVGRenderer,
]);
window.echarts = { init: echarts.init };
JS
npx esbuild charts.js --bundle --minify --legal-comments=none --target=es2020 --format=iife --outfile=out.js
{
  echo "/* Apache ECharts $version, https://echarts.apache.org, Apache License 2.0; made by make-charts.sh */"
  cat out.js
} >"$here/charts.min.js"
