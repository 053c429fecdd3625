// A browser starts no worker for a page that it opened from a folder. Search then runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = `<script>
        postMessage = message => parent.postMessage(message, "*")
        importScripts = (...urls) => urls.reduce((before, src) => before.then(() => new Promise(loaded => {
          const script = document.createElement("script")
          Object.assign(script, { src, onload: loaded })
          document.body.append(script)
        })), Promise.resolve())
        </script><body><script src="${url}"></script></body>`
      this.ready = new Promise(resolve => { frame.onload = resolve })
      document.body.append(frame)
      this.frame = frame
      addEventListener("message", event => {
        if (event.source !== frame.contentWindow) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        if (this.onmessage) this.onmessage(message)
      })
    }

    postMessage(message) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow // whose postMessage answers
        inside.dispatchEvent(new inside.MessageEvent("message", { data: message }))
      })
    }

    terminate() {
      this.frame.remove()
    }
  }
}
