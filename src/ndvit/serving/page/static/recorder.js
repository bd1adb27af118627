// Records from the microphone as WAV, which every sound library reads.

const LONGEST = 60; // seconds

export class Recorder {
  constructor(onTick) { this.onTick = onTick; }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    this.recorder = new MediaRecorder(this.stream);
    this.parts = [];
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.recorder.start();
    const began = Date.now();
    this.timer = setInterval(() => {
      const seconds = Math.floor((Date.now() - began) / 1000);
      this.onTick(seconds);
      if (seconds >= LONGEST) this.recorder.stop();
    }, 250);
    this.finished = new Promise((resolve) => { this.recorder.onstop = resolve; });
  }

  async stop() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
    await this.finished;
    clearInterval(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    const context = new AudioContext();
    const sound = await context.decodeAudioData(await new Blob(this.parts).arrayBuffer());
    context.close();
    return new File([wav(sound.getChannelData(0), sound.sampleRate)], "recording.wav", { type: "audio/wav" });
  }
}

/** Samples from -1 to 1 as a WAV file of 16 bits. */
export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((v, i) => view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, v)), true));
  return view.buffer;
}
