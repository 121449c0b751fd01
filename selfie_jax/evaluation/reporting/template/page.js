'use strict';
(() => {
  const charts = JSON.parse(document.getElementById('charts').textContent);
  const places = new Map([...document.querySelectorAll('.plot')].map((place) => [place.dataset.chart, place]));
  const narrow = matchMedia('(max-width: 560px)');
  const reduced = matchMedia('(prefers-reduced-motion: reduce)');

  // A figure's colours are names of CSS variables, or hues: what they stand for depends on light and dark mode.
  function coloured(value, style) {
    if (typeof value === 'string') {
      if (/^--[a-z0-9-]+$/.test(value)) return style.getPropertyValue(value).trim();
      if (value.startsWith('hue:')) return `hsl(${value.slice(4)}, 52%, ${style.getPropertyValue('--hue-light').trim()})`;
      return value;
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === 'object') {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, key === 'customdata' ? item : coloured(item, style)]));
    }
    return value;
  }

  function axis(own) {
    return {
      gridcolor: '--line', linecolor: '--line', zeroline: false, ticks: 'outside', tickcolor: '--line', ticklen: 4,
      tickfont: {color: '--muted', size: 11}, automargin: true, separatethousands: true, exponentformat: 'power', fixedrange: true, ...own,
      title: {standoff: 10, ...own?.title, font: {color: '--muted', size: 12}},
    };
  }

  function layout(own, height) {
    const font = getComputedStyle(document.body).fontFamily;
    return {
      height, autosize: true, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: {family: font, size: 12, color: '--ink'}, margin: {l: 8, r: 12, t: 8, b: 8, pad: 2},
      showlegend: true, hovermode: 'closest',
      legend: {orientation: 'h', x: 0, xanchor: 'left', y: 1.02, yanchor: 'bottom', font: {color: '--muted', size: 12}, itemsizing: 'constant', maxheight: 400},
      modebar: {orientation: 'v', bgcolor: 'rgba(0,0,0,0)', color: '--faint', activecolor: '--accent'},
      hoverlabel: {bgcolor: '--surface', bordercolor: '--line', font: {family: font, color: '--ink', size: 12}, align: 'left'},
      ...own, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
    };
  }

  const drawn = new Set();
  function draw(name) {
    const place = places.get(name);
    const chart = charts[name];
    const style = getComputedStyle(document.documentElement);
    const map = name.startsWith('map-');
    // On a phone the legend has a line for each entry.
    const entries = chart.layout.showlegend === false ? 0 : chart.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const height = chart.height + (narrow.matches ? 17 * entries : 0);
    place.style.height = `${height}px`;
    const full = layout(structuredClone(chart.layout), height);
    if (map) { // To look closer: the only charts that are worth it.
      full.xaxis.fixedrange = full.yaxis.fixedrange = false;
      full.dragmode = 'zoom';
      full.margin.r = 40;
    }
    for (const trace of chart.data) {
      if (trace.colorbar) {
        trace.colorbar = {thickness: 10, outlinewidth: 0, tickfont: {color: '--muted', size: 11}, ...trace.colorbar};
        if (narrow.matches) trace.showscale = false;
      }
    }
    Plotly.react(place, coloured(chart.data, style), coloured(full, style), {
      displaylogo: false, displayModeBar: map ? 'hover' : false, responsive: true,
      modeBarButtons: [['zoom2d', 'pan2d', 'resetScale2d', 'toImage']], doubleClick: 'reset',
    });
    if (!drawn.has(name)) {
      drawn.add(name);
      if (map) place.on('plotly_click', (event) => play(name.slice('map-'.length), soundAt(place, event.points[0])));
    }
  }

  // The number of the sound at a point of a map. Clips that sound alike lie on top of each other: one nearby will do.
  function soundAt(map, point) {
    const {xaxis, yaxis} = map._fullLayout;
    let [nearest, best] = [-1, 10];
    for (const trace of map.data) {
      trace.customdata?.forEach(([, , , number], i) => {
        const distance = Math.hypot(xaxis.l2p(trace.x[i]) - xaxis.l2p(point.x), yaxis.l2p(trace.y[i]) - yaxis.l2p(point.y));
        if (number >= 0 && distance < best) [nearest, best] = [number, distance];
      });
    }
    return nearest;
  }

  function play(task, number) {
    const player = document.getElementById(`sound-${task}-${number}`);
    if (!player) return;
    player.scrollIntoView({block: 'nearest', behavior: reduced.matches ? 'auto' : 'smooth'});
    player.currentTime = 0;
    player.play();
  }
  const players = [...document.querySelectorAll('audio')];
  for (const player of players) {
    player.addEventListener('play', () => {
      for (const other of players) if (other !== player) other.pause();
      player.closest('li').classList.add('playing');
    });
    for (const event of ['pause', 'ended']) {
      player.addEventListener(event, () => player.closest('li').classList.remove('playing'));
    }
  }

  // First what is on the screen, then the rest, one by one: in between, the page answers.
  const waiting = [...places.keys()];
  const seen = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (isIntersecting && !drawn.has(target.dataset.chart)) draw(target.dataset.chart);
    }
  }, {rootMargin: '300px'});
  places.forEach((place) => seen.observe(place));
  (function next() {
    const name = waiting.shift();
    if (name === undefined) {
      document.body.dataset.drawn = drawn.size;
      return;
    }
    if (!drawn.has(name)) draw(name);
    setTimeout(next);
  })();

  const again = () => drawn.forEach(draw);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', again);
  narrow.addEventListener('change', again);
  matchMedia('print').addEventListener('change', again);

  const links = new Map([...document.querySelectorAll('nav a')].map((link) => [link.hash.slice(1), link]));
  const spy = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (!isIntersecting) continue;
      links.forEach((link) => link.removeAttribute('aria-current'));
      links.get(target.id)?.setAttribute('aria-current', 'true');
    }
  }, {rootMargin: '-15% 0px -75% 0px'});
  document.querySelectorAll('main [data-listed]').forEach((part) => spy.observe(part));
})();
